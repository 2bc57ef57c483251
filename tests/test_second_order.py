"""MLAB2: the two-step formula itself, its orders, and that it runs each level as often as its coins say."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import as_user, CountedLevels, POLICIES, slope, solve, WITH_STATE
from second_order_problems import by_hand, cheap, drag, fine, GRADED, KEY, mlab2, Y0

import mlem_jax as ml


@pytest.mark.parametrize("backward", [False, True])
def test_probability_one_is_adams_bashforth_on_the_finest_level(x64, backward):
    ts = jnp.asarray(GRADED[::-1] if backward else GRADED)
    term = ml.MultilevelTerm(cheap, fine)
    controller = diffrax.StepTo(ts)
    settings = dict(t0=ts[0], t1=ts[-1], saveat=diffrax.SaveAt(steps=True), stepsize_controller=controller)
    ys = solve(term, mlab2([1.0, 1.0]), Y0, **settings, max_steps=24).ys
    np.testing.assert_allclose(ys, by_hand(fine, np.asarray(ts), Y0), rtol=1e-12)


def test_corrections_are_those_of_the_formula(x64):
    # Level 2 in one step of four (the midpoint pattern: steps 2, 6, 10) until t = 1, from then in every step.
    ts = GRADED
    n = int(np.searchsorted(ts, 1.0))

    def probabilities(t):
        return jnp.where(t < 1.0, jnp.array([1.0, 0.25]), jnp.ones(2))

    def increment(t, y):
        return np.asarray(drag(t, y, None)) - np.asarray(cheap(t, y, None))

    steps = np.arange(24)
    p = np.where(steps < n, 0.25, 1.0)
    expected = by_hand(cheap, ts, Y0, (increment, p, (steps >= n) | (steps % 4 == 2)))
    saveat = diffrax.SaveAt(steps=True)
    controller = diffrax.StepTo(jnp.asarray(GRADED))
    solver = ml.MLAB2(probabilities, key=KEY)
    solution = solve(
        ml.MultilevelTerm(cheap, drag), solver, Y0, t1=2.0, saveat=saveat, stepsize_controller=controller
    )
    np.testing.assert_allclose(solution.ys[:24], expected, rtol=1e-12)


def test_levels_that_fire_together_at_one_weight_are_one_increment(x64):
    # The middle level is skipped, and what it would have said is part of the finest one's increment.
    def middle(t, y, args):
        return drag(t, y, args) + jnp.sin(3 * y)

    both = solve(ml.MultilevelTerm(cheap, middle, drag), mlab2([1.0, 0.25, 0.25]), Y0, t1=2.0, steps=24)
    one = solve(ml.MultilevelTerm(cheap, drag), mlab2([1.0, 0.25]), Y0, t1=2.0, steps=24)
    np.testing.assert_allclose(both.ys, one.ys, rtol=1e-12)
    assert ml.evaluation_report(both.solver_state).evaluations.tolist() == [30, 0, 6]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("backward", [False, True])
def test_the_clock_may_be_the_logarithm_of_the_time(x64, backward, sign):
    # Backward: from 5 to 0.1; the other sign: from -5 to -0.1.
    times = sign * np.geomspace(0.1, 5, 25) ** 1.1
    times = times[::-1] if backward else times
    settings = dict(t0=times[0], t1=times[-1], saveat=diffrax.SaveAt(steps=True), max_steps=24)
    controller = diffrax.StepTo(jnp.asarray(times))
    solver = mlab2([1.0, 1.0], time_variable="log")
    term = ml.MultilevelTerm(cheap, fine)
    ys = solve(term, solver, Y0, **settings, stepsize_controller=controller).ys
    expected = by_hand(fine, times, Y0, clock=lambda t: np.log(np.abs(t)))
    np.testing.assert_allclose(ys, expected, rtol=1e-10)


@pytest.mark.slow
def test_the_logarithm_of_the_time_is_of_order_two_and_better_where_drifts_change_with_it(x64):
    # Probability flow of a normal distribution, dy/ds = s y / (1 + s^2), from s = 80 to 0.01.
    counts, errors = np.array([24, 48, 96]), {}
    for clock in ("time", "log"):
        errors[clock] = []
        for count in counts:
            ts = jnp.geomspace(80.0, 0.01, count + 1)
            solution = solve(
                ml.MultilevelTerm(lambda t, y, args: t * y / (1 + t**2)),
                mlab2([1.0], time_variable=clock),
                jnp.asarray(80.0),
                t0=ts[0],
                t1=ts[-1],
                stepsize_controller=diffrax.StepTo(ts),
                max_steps=int(count),
            )
            exact = 80 * np.sqrt((1 + 1e-4) / (1 + 80**2))
            errors[clock].append(abs(float(solution.ys[-1]) - exact))
    assert abs(slope(1 / counts, errors["log"]) - 2) < 0.3, errors
    assert errors["log"][0] < 0.6 * errors["time"][0], errors


def test_a_clock_that_is_none_and_a_time_without_logarithm():
    with as_user(), pytest.raises(ValueError, match="time_variable='days'.*'time', 'log'"):
        mlab2([1.0], time_variable="days")
    for t0, t1 in ((0.0, 1.0), (-1.0, 1.0), (1.0, 0.0)):
        with as_user(), pytest.raises(Exception, match="logarithm of the time has no value"):
            solve(ml.MultilevelTerm(cheap), mlab2([1.0], time_variable="log"), Y0, t0=t0, t1=t1, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["equal", "graded", "backward"])
def test_order_two_in_the_step_where_euler_has_one(x64, grid):
    # Midpoint coins with p = 1/3: the window is three steps. Of second order only because levels are evaluated on the
    # path; where the state is, half a window's correction off it, the error is of first order, -H/2 D' D.
    ends, orders = {}, {}
    counts = [48, 96, 192]
    for kind in (ml.MLAB2, ml.MLEM):
        for count in (*counts, 6144):
            u = jnp.linspace(0, 1, count + 1)
            ts = 2.0 * u if grid == "equal" else u + u**2
            ts = ts[::-1] if grid == "backward" else ts
            reference = count == 6144
            solver = kind(jnp.ones(2) if reference else jnp.array([1.0, 1 / 3]), key=KEY)
            saveat, controller = diffrax.SaveAt(t1=True), diffrax.StepTo(ts)
            settings = dict(
                t0=ts[0], t1=ts[-1], saveat=saveat, stepsize_controller=controller, max_steps=count
            )
            ends[count] = solve(ml.MultilevelTerm(cheap, drag), solver, Y0, **settings).ys[0]
        if kind is ml.MLAB2:
            exact = ends[6144]
        errors = [float(jnp.linalg.norm(ends[count] - exact)) for count in counts]
        orders[kind] = slope(1 / np.array(counts), errors)
    assert abs(orders[ml.MLAB2] - 2) < 0.25, orders
    assert orders[ml.MLEM] < 1.3, orders


@pytest.mark.slow
def test_additive_noise_leaves_the_least_error_that_increments_allow(x64):
    # dx = -x dt + 0.5 dW on 1000 paths (seed 1) to T = 2, against Euler on the path's 4096 cells. What the increments
    # of a path do not say of its integral over a step has the variance h^3 / 12; pushed to T by exp(t - T).
    grid = jnp.linspace(0, 2, 4097)

    def ends(solver, steps):
        def one(key):
            noise = ml.GridBrownianPath(grid, (), key=key)
            control = diffrax.ControlTerm(lambda t, y, args: 0.5, noise)
            terms = diffrax.MultiTerm(ml.MultilevelTerm(lambda t, y, args: -y), control)
            return solve(
                terms, solver, jnp.array(0.3), t1=2.0, steps=steps, saveat=diffrax.SaveAt(t1=True)
            ).ys[0]

        return jax.jit(jax.vmap(one))(jr.split(jr.key(1), 1000))

    exact = ends(diffrax.Euler(), 4096)
    steps = np.array([128, 256])
    ours, eulers = (
        np.array([np.sqrt(np.mean((ends(solver, n) - exact) ** 2)) for n in steps])
        for solver in (mlab2([1.0]), diffrax.Euler())
    )
    # 1000 paths give each error to 2%; what is of higher order in h adds some.
    least = 0.5 * (2 / steps) * np.sqrt((1 - np.exp(-4)) / 2 / 12)
    np.testing.assert_allclose(ours, least, rtol=0.1)
    assert np.all(eulers > 1.3 * ours)


def test_noise_enters_a_step_as_in_euler(x64):
    path = ml.GridBrownianPath(jnp.asarray(GRADED), (2,), key=jr.key(2))
    terms = diffrax.MultiTerm(
        ml.MultilevelTerm(cheap, fine),
        diffrax.ControlTerm(lambda t, y, args: jnp.diag(jnp.array([0.1, 0.3])), path),
    )
    ts = GRADED
    increments = [
        path.evaluate(a, b) for a, b in zip(jnp.asarray(GRADED)[:-1], jnp.asarray(GRADED)[1:], strict=True)
    ]
    noise = [np.array([0.1, 0.3]) * np.asarray(w) for w in increments]
    saveat, controller = diffrax.SaveAt(steps=True), diffrax.StepTo(jnp.asarray(GRADED))
    ys = solve(terms, mlab2([1.0, 1.0]), Y0, t1=2.0, saveat=saveat, stepsize_controller=controller).ys
    np.testing.assert_allclose(ys[:24], by_hand(fine, ts, Y0, noise=noise), rtol=1e-12)


@pytest.mark.slow
def test_levels_run_as_the_coins_say():
    counted = CountedLevels(3, costs=(1, 4, 16))
    y0 = jnp.ones((5, 2))

    def run(y0, solver):
        return solve(counted.term, solver, y0)

    solver = mlab2((1.0, 0.4, 0.1))
    report = ml.evaluation_report(run(y0[0], solver).solver_state)
    assert (
        counted.take() == report.evaluations.tolist() == [28, 10, 2]
    )  # level 2 fires in 8 steps, 3 in two others
    for way in (
        eqx.filter_jit(run),
        jax.vmap(run, in_axes=(0, None)),
        eqx.filter_jit(jax.vmap(run, (0, None))),
    ):
        way(y0 if way is not run else y0[0], solver)
        assert counted.take() == [28, 10, 2]
    # One that fires in every step acts in the middle of every step.
    run(y0[0], mlab2((1.0, 1.0, 0.1)))
    assert counted.take() == [40, 20, 2]
    run(y0[0], mlab2((1.0, 1.0, 1.0)))
    assert counted.take() == [0, 0, 20]


def test_continuing_is_not_stopping(x64):
    term, solver = ml.MultilevelTerm(cheap, fine), mlab2([1.0, 0.25], POLICIES["stratified"])

    @jax.jit
    def part(start, stop, y, state, jump):
        settings = dict(solver_state=state, made_jump=jump, saveat=WITH_STATE, max_steps=None)
        return diffrax.diffeqsolve(term, solver, start, stop, 1 / 20, y, **settings)

    # One program for all: times and the jump are arrays, and the first state is given too.
    start, middle, end = jnp.array([0.0, 1.0, 2.0])
    y0, jump = jnp.asarray(Y0, float), jnp.array([False, True])
    fresh = solver.init(term, start, middle, y0, None)
    whole = part(start, end, y0, fresh, jump[0])
    half = part(start, middle, y0, fresh, jump[0])
    y, state = half.ys[-1], half.solver_state
    rest = part(middle, end, y, state, jump[0])
    np.testing.assert_allclose(rest.ys[-1], whole.ys[-1], rtol=1e-9)
    # Forgetting the last drift costs an Euler step in the middle.
    forgetful = part(middle, end, y, state, jump[1])
    assert jnp.abs(forgetful.ys[-1] - whole.ys[-1]).max() > 1e-5


def test_trajectories_that_wait_for_others_stay_as_they_are(x64):
    term, solver = ml.MultilevelTerm(cheap, fine), mlab2([1.0, 0.25])

    def run(t1):
        return solve(term, solver, Y0, t1=t1, dt0=0.05).ys[-1]

    ends = jnp.array([0.5, 1.0, 2.0])
    np.testing.assert_allclose(jax.vmap(run)(ends), jnp.stack([run(t) for t in ends]), rtol=1e-12)


@pytest.mark.slow
def test_gradient_of_a_level_s_parameter(x64):
    def loss(rate):
        term = ml.MultilevelTerm(lambda t, y, args: -y, lambda t, y, args: -rate * y * y)
        return jnp.sum(solve(term, mlab2([1.0, 0.25]), Y0, saveat=diffrax.SaveAt(t1=True)).ys)

    rise = (loss(1.2 + 1e-6) - loss(1.2 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(loss)(1.2), rise, rtol=1e-6)


def test_narrow_levels_and_any_pytree():
    def level(rate):
        return lambda t, y, args: jax.tree.map(lambda x: (-rate * x).astype(jnp.bfloat16), y)

    y0 = {"position": jnp.ones(3), "velocity": (jnp.ones((2, 2)),)}
    ys = solve(ml.MultilevelTerm(level(0.9), level(1.0)), mlab2([1.0, 0.25]), y0, steps=64).ys
    for leaf in jax.tree.leaves(ys):
        assert leaf.dtype == jnp.float32
        np.testing.assert_allclose(leaf, np.exp(-1), rtol=1e-2)


def test_refuses_coins_for_the_base_and_batched_coins():
    term = ml.MultilevelTerm(cheap, fine)
    with as_user(), pytest.raises(Exception, match="cheapest level in every step"):
        solve(term, mlab2([0.5, 0.25]), Y0)
    with pytest.raises(ValueError, match="vmap"):
        jax.vmap(lambda key: solve(term, mlab2([1.0, 0.5], POLICIES["stratified"], key), Y0).ys)(
            jr.split(KEY, 3)
        )
    with as_user(), pytest.raises(ValueError, match="MLAB2 was given probabilities of shape"):
        solve(term, mlab2([1.0, 0.5, 0.5]), Y0)
