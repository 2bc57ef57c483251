"""MLEM as a drop-in: noise shapes and states, saving, meters, events, continuing from solver_state, other
solvers on the same terms. References are a plain loop over the coins' own steps, or diffrax itself."""

import io

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import lineax
import numpy as np
import optimistix as optx
import pytest
from problems import every_policy, mlem, POLICIES, solve, WITH_STATE

import mlem_jax as ml

KEY = jr.key(0)
Y0 = jnp.array([1.0, 0.5])
GRID = jnp.linspace(0, 1, 21)
T1 = diffrax.SaveAt(t1=True)


def cheap(t, y, args):
    return jax.tree.map(lambda x: -x, y)


def fine(t, y, args):
    return jax.tree.map(lambda x: -1.2 * x + 0.3 * jnp.cos(t), y)


TERM = ml.MultilevelTerm(cheap, fine)
MIDPOINT = mlem((1.0, 0.2), KEY, POLICIES["midpoint"])  # fires in the steps 2, 7, 12, 17 of 20


def loop(y, diffuse=lambda y, n: 0.0, ts=GRID):
    """MIDPOINT by hand: all states, in numpy and double precision."""
    y = np.asarray(y, np.float64)
    states, ts = [y], np.asarray(ts, np.float64)
    for n in range(20):
        t, h = ts[n], ts[n + 1] - ts[n]
        weight = 5.0 if n % 5 == 2 else 0.0
        drift = -y + weight * (-0.2 * y + 0.3 * np.cos(t))
        y = y + h * drift + diffuse(y, n)
        states.append(y)
    return np.stack(states)


STATES = loop(Y0)


# --- noise and states ---

MATRIX = np.array([[0.3, 0.1, 0.0], [0.0, 0.2, 0.1]])
DIAGONAL = np.array([0.2, 0.4])
DIFFUSIONS = {
    "matrix": ((3,), lambda y: jnp.asarray(MATRIX, y.dtype) * y[0], lambda y, w: MATRIX * y[0] @ w),
    "diagonal": (
        (2,),
        lambda y: lineax.DiagonalLinearOperator(jnp.asarray(DIAGONAL, y.dtype) * y),
        lambda y, w: DIAGONAL * y * w,
    ),
    "scalar noise": ((), lambda y: 0.3 * y, lambda y, w: 0.3 * y * w),
}


@pytest.mark.slow
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("shape, diffusion, by_hand", DIFFUSIONS.values(), ids=DIFFUSIONS.keys())
def test_any_noise_forward_and_backward(shape, diffusion, by_hand, backward):
    noise = ml.GridBrownianPath(GRID, shape, key=jr.key(1))
    terms = diffrax.MultiTerm(TERM, diffrax.ControlTerm(lambda t, y, args: diffusion(y), noise))
    ts = GRID[::-1] if backward else GRID
    times = dict(t0=1.0, t1=0.0) if backward else {}
    solution = solve(terms, MIDPOINT, Y0, saveat=diffrax.SaveAt(steps=True), max_steps=20, **times)
    w = [np.asarray(noise.evaluate(ts[n], ts[n + 1]), np.float64) for n in range(20)]
    np.testing.assert_allclose(solution.ys, loop(Y0, lambda y, n: by_hand(y, w[n]), ts)[1:], rtol=1e-4)


def test_states_and_noise_may_be_pytrees():
    y0 = {"a": jnp.array([1.0, 2.0]), "b": (jnp.array(0.5), jnp.ones((2, 1)))}
    shape = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), y0)
    noise = ml.GridBrownianPath(GRID, shape, key=jr.key(1))

    def diffusion(t, y, args):
        # Diagonal, leaf by leaf.
        return lineax.DiagonalLinearOperator(jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), y))

    terms = diffrax.MultiTerm(TERM, diffrax.ControlTerm(diffusion, noise))
    end = solve(terms, MIDPOINT, y0, saveat=T1).ys
    assert jtu.tree_structure(end) == jtu.tree_structure(y0)
    w = [noise.evaluate(GRID[n], GRID[n + 1]) for n in range(20)]
    for i, leaf in enumerate(jtu.tree_leaves(y0)):
        increments = [0.1 * np.asarray(jtu.tree_leaves(x)[i], np.float64) for x in w]
        expected = loop(leaf, lambda y, n: increments[n])[-1]  # noqa: B023
        np.testing.assert_allclose(jtu.tree_leaves(end)[i][0], expected, rtol=1e-4)


def test_several_noises_beside_one_drift():
    noises = [ml.GridBrownianPath(GRID, (), key=jr.key(seed)) for seed in (1, 2)]
    controls = [diffrax.ControlTerm(lambda t, y, args: 0.3 * y, noise) for noise in noises]
    # The drift need not come first.
    terms = diffrax.MultiTerm(controls[0], TERM, controls[1])
    end = solve(terms, MIDPOINT, Y0, saveat=T1).ys[0]
    w = [sum(float(x.evaluate(GRID[n], GRID[n + 1])) for x in noises) for n in range(20)]
    np.testing.assert_allclose(end, loop(Y0, lambda y, n: 0.3 * y * w[n])[-1], rtol=1e-4)


def test_bfloat16_levels_with_a_float32_state():
    # On values of bfloat16 (8 bits) the state keeps the steps that bfloat16 would lose: 1 + 2^-12 is 1 there.
    def half(t, y, args):
        assert y.dtype == jnp.float32
        return jnp.full_like(y, 2.0**-8, jnp.bfloat16)

    end = solve(ml.MultilevelTerm(half, half), MIDPOINT, Y0, steps=16, saveat=T1).ys[0]
    assert end.dtype == jnp.float32
    np.testing.assert_array_equal(end, Y0 + 2.0**-8)


# --- saving ---


def test_all_forms_of_saving():
    subs = {
        "ends": diffrax.SubSaveAt(t0=True, t1=True),
        "second steps": diffrax.SubSaveAt(steps=2),
        "first entry": diffrax.SubSaveAt(ts=jnp.array([0.1, 0.125, 0.99]), fn=lambda t, y, args: y[0] * args),
    }
    saveat = diffrax.SaveAt(subs=subs, dense=True, solver_state=True)
    solution = solve(TERM, MIDPOINT, Y0, saveat=saveat, args=3.0, max_steps=20)
    close = dict(rtol=1e-5)
    np.testing.assert_allclose(solution.ys["ends"], STATES[[0, -1]], **close)
    np.testing.assert_allclose(solution.ts["ends"], [0, 1])
    np.testing.assert_allclose(solution.ys["second steps"][:10], STATES[2::2], **close)
    np.testing.assert_allclose(solution.ts["second steps"][:10], GRID[2::2], **close)
    between = 3 * np.interp([0.1, 0.125, 0.99], GRID, STATES[:, 0])
    np.testing.assert_allclose(solution.ys["first entry"], between, **close)
    # Dense output is linear inside each step.
    for t in (0.0, 0.31, 0.5, 0.777, 1.0):
        expected = [np.interp(t, GRID, STATES[:, i]) for i in range(2)]
        np.testing.assert_allclose(solution.evaluate(t), expected, rtol=1e-5)
    assert solution.stats["num_accepted_steps"] == 20 and solution.solver_state.step == 20


@pytest.mark.parametrize("batched", [False, True], ids=["one", "vmap"])
def test_progress_meter_runs_to_the_end(batched, capfd):
    def run(y0):
        return solve(TERM, MIDPOINT, y0, saveat=T1, progress_meter=diffrax.TextProgressMeter(0.04)).ys

    ys = jax.vmap(run)(jnp.stack([Y0, Y0])) if batched else run(Y0)
    jax.effects_barrier()
    lines = capfd.readouterr().out.split()
    assert lines[0] == "0.00%" and lines[-1] == "100.00%" and len(lines) == 21
    np.testing.assert_allclose(np.asarray(ys).reshape(-1, 2)[0], STATES[-1], rtol=1e-5)


def test_tqdm_meter(capfd):
    solve(TERM, MIDPOINT, Y0, progress_meter=diffrax.TqdmProgressMeter())
    jax.effects_barrier()
    assert "100.00%" in capfd.readouterr().err


# --- events ---


def test_event_with_a_root_finder_stops_on_the_interpolated_crossing():
    event = diffrax.Event(
        lambda t, y, args, **kwargs: y[0] - 0.6, root_finder=optx.Newton(1e-6, 1e-6), direction=False
    )
    solution = solve(TERM, MIDPOINT, Y0, saveat=diffrax.SaveAt(t1=True), event=event)
    assert solution.result == diffrax.RESULTS.event_occurred
    n = np.nonzero(STATES[:, 0] < 0.6)[0][0]
    crossing = np.interp(-0.6, -STATES[n - 1 : n + 1, 0], GRID[n - 1 : n + 1])
    np.testing.assert_allclose(solution.ts[0], crossing, rtol=1e-5)
    np.testing.assert_allclose(solution.ys[0, 0], 0.6, rtol=1e-5)


# --- continuing ---


@every_policy
def test_two_halves_are_one_whole(coins):
    # p = 0.15 over 20 steps: windows straddle the middle, and steps 10 to 19 need their own coins.
    solver = mlem((0.7, 0.15), KEY, coins, record=32)
    noise = ml.GridBrownianPath(GRID, (), key=jr.key(1))
    terms = diffrax.MultiTerm(TERM, diffrax.ControlTerm(lambda t, y, args: 0.3 * y, noise))

    @eqx.filter_jit
    def part(start, stop, y0, state):
        settings = dict(dt0=1 / 20, solver_state=state, saveat=WITH_STATE, max_steps=None)
        return diffrax.diffeqsolve(terms, solver, start, stop, y0=y0, **settings)

    # As arrays, so that the first two are one program.
    start, middle, end = jnp.array([0.0, 0.5, 1.0])
    whole = part(start, end, Y0, None)
    first = part(start, middle, Y0, None)
    second = part(middle, end, first.ys[0], first.solver_state)
    np.testing.assert_allclose(second.ys, whole.ys, rtol=1e-5)
    one, two = (ml.evaluation_report(x.solver_state) for x in (whole, second))
    assert (two.steps, two.evaluations.tolist()) == (20, one.evaluations.tolist())
    for k in range(2):
        np.testing.assert_allclose(two.firing_times[k], one.firing_times[k], atol=1e-6)


# --- other solvers ---


GRID_NOISE = ml.GridBrownianPath(GRID, (), key=jr.key(1))
MULTIPLICATIVE = diffrax.ControlTerm(lambda t, y, args: 0.3 * y, GRID_NOISE)
SPACE_TIME = diffrax.VirtualBrownianTree(
    0.0, 1.0, tol=1e-3, shape=(), key=jr.key(1), levy_area=diffrax.SpaceTimeLevyArea
)
ADDITIVE = diffrax.ControlTerm(lambda t, y, args: 0.3 * Y0, SPACE_TIME)
ADAPTIVE = dict(stepsize_controller=diffrax.PIDController(rtol=1e-4, atol=1e-6), dt0=0.05)
OTHERS = {
    "Euler": (diffrax.Euler(), None, {}),
    "Heun, adaptive": (diffrax.Heun(), None, ADAPTIVE),
    "Euler-Maruyama": (diffrax.Euler(), MULTIPLICATIVE, {}),
    "EulerHeun": (diffrax.EulerHeun(), MULTIPLICATIVE, {}),
    "ItoMilstein": (diffrax.ItoMilstein(), MULTIPLICATIVE, {}),
    "ShARK": (diffrax.ShARK(), ADDITIVE, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("solver, diffusion, settings", OTHERS.values(), ids=OTHERS.keys())
def test_other_solvers_run_the_finest_level(solver, diffusion, settings):
    def end(drift):
        terms = drift if diffusion is None else diffrax.MultiTerm(drift, diffusion)
        return solve(terms, solver, Y0, saveat=T1, **settings).ys

    np.testing.assert_allclose(end(TERM), end(diffrax.ODETerm(fine)), rtol=1e-6)


# --- transformations of the objects themselves ---


class Linear(eqx.Module):
    weight: jax.Array
    act: object = eqx.field(static=True)

    def __call__(self, t, y, args):
        return self.act(self.weight @ y)


def test_terms_and_solvers_survive_equinox():
    weight = jnp.array([[-1.0, 0.5], [0.2, -0.7]])
    term = ml.MultilevelTerm(Linear(0.9 * weight, jnp.tanh), Linear(weight, jnp.tanh), costs=(1, 3))
    expected = solve(term, MIDPOINT, Y0).ys
    # Split into arrays and the rest, and joined again.
    arrays, rest = eqx.partition((term, MIDPOINT), eqx.is_array)
    # Two weights; probabilities. The offset 0.5 stays a number, and with it the solver needs no key and holds none.
    assert len(jtu.tree_leaves(arrays)) == 3
    # Random coins have theirs, as data.
    assert len(jtu.tree_leaves(eqx.filter(mlem((1.0, 0.2), KEY), eqx.is_array))) == 2
    again, solver = eqx.combine(arrays, rest)
    np.testing.assert_array_equal(solve(again, solver, Y0).ys, expected)
    # An offset given as an array is one: data of compiled functions, which are not compiled anew for another.
    offset = eqx.filter(ml.SystematicCoins(jnp.array(0.5)), eqx.is_array).offset
    assert offset is not None and offset.shape == ()
    # Written to a file and read back; the key is data.
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, term)
    file.seek(0)
    blank = jax.tree.map(lambda x: jnp.zeros_like(x) if eqx.is_array(x) else x, term)
    read = eqx.tree_deserialise_leaves(file, blank)
    np.testing.assert_array_equal(solve(read, MIDPOINT, Y0).ys, expected)
    # Edited: the finest level's weights doubled.
    edited = eqx.tree_at(lambda term: term.levels[1].weight, term, 2 * weight)
    np.testing.assert_allclose(edited.vf(0.0, Y0, None), jnp.tanh(2 * weight @ Y0))
    # As arguments of compiled functions, and over a batch of terms with one solver.
    jitted = eqx.filter_jit(lambda term, solver: solve(term, solver, Y0).ys)
    np.testing.assert_allclose(jitted(term, MIDPOINT), expected, rtol=1e-6)
    pair = jax.tree.map(lambda *x: jnp.stack(x) if eqx.is_array(x[0]) else x[0], term, edited)
    axes = jax.tree.map(lambda x: 0 if eqx.is_array(x) else None, pair)
    both = eqx.filter_vmap(jitted, in_axes=(axes, None))(pair, MIDPOINT)
    np.testing.assert_allclose(both[0], expected, rtol=1e-6)
    np.testing.assert_allclose(both[1], solve(edited, MIDPOINT, Y0).ys, rtol=1e-6)
