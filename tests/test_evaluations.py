"""Laziness: how often levels really run, counted on the device's host by a callback, beside what the solver's
state and evaluation_report say; and what becomes of it under every transformation. Batches that would lose
the savings are refused."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import CountedLevels, every_policy, mlem, POLICIES, solve

import mlem_jax as ml

KEY = jr.key(0)
P = (1.0, 0.5, 0.2)
Y0 = jnp.array([1.0, 2.0])
BATCH = jnp.array([[1.0, 2.0], [0.8, 2.0], [1.2, 1.0], [0.4, 1.0]])
EVENT = diffrax.Event(lambda t, y, args, **kwargs: y[0] < 0.6)


@pytest.fixture(scope="module")
def counted():
    return CountedLevels(3, costs=(1, 5, 25))


def reported(solution):
    return ml.evaluation_report(solution.solver_state).evaluations.tolist()


def test_an_event_on_a_steady_state_runs_the_level_that_it_names(counted):
    # diffrax's own asks for the drift of the finest level before the first step and after each of the 20; that is no
    # evaluation of the solver's. One on the cheapest level, as the docstring of MLEM says, leaves the finest alone.
    def rms(y):
        return jnp.sqrt(jnp.mean(y**2))

    def slow(t, y, args, **kwargs):
        return rms(counted.term.levels[0](t, y, args)) < 1e-3

    events = [diffrax.steady_state_event(rtol=1e-3, atol=1e-3, norm=rms), slow]
    found = []
    for event in events:
        solution = solve(counted.term, mlem(P, KEY, POLICIES["midpoint"]), Y0, event=diffrax.Event(event))
        extra = np.subtract(counted.take(), reported(solution)).tolist()
        assert reported(solution) == [20, 12, 4]
        found.append(extra)
    assert found == [[0, 0, 21], [21, 0, 0]]


@every_policy
def test_executions_are_those_of_the_coins(counted, coins):
    solution = solve(counted.term, mlem(P, KEY, coins, record=20), Y0)
    executions = counted.take()
    assert executions == reported(solution)
    # Replayed by hand: weights n / p, coefficients w_k - w_{k+1}, evaluated where these are not zero.
    solver, p = mlem(P, KEY, coins), jnp.array(P)
    draw, state = eqx.filter_jit(coins.draw), coins.init(3)
    fired, evaluated = np.zeros((20, 3), bool), np.zeros((20, 3), bool)
    for step in range(20):
        count, state = draw(p, state, jnp.asarray(step), solver.key)
        weights = np.append(np.asarray(count) / np.asarray(p), 0)
        fired[step], evaluated[step] = np.asarray(count) > 0, weights[:-1] != weights[1:]
    assert executions == np.sum(evaluated, axis=0).tolist()
    report = ml.evaluation_report(solution.solver_state)
    for k in range(3):
        for times, steps in [(report.firing_times, fired), (report.evaluation_times, evaluated)]:
            np.testing.assert_allclose(times[k], np.nonzero(steps[:, k])[0] / 20, rtol=1e-5)


def test_midpoint_counts_are_known_in_advance(counted):
    # 20 steps, p = (1, 1/2, 1/5). The finest fires in 2, 7, 12, 17, the middle one in 1, 3, 5, ..., 19; that
    # one is also needed where the finest fires without it, to take its part of the finest away: in 2 and 12.
    assert reported(solve(counted.term, mlem(P, KEY, POLICIES["midpoint"]), Y0)) == [20, 12, 4]
    assert counted.take() == [20, 12, 4]


def test_always_on_prefix_collapses(counted):
    solve(counted.term, mlem((1.0, 1.0, 0.1), KEY, POLICIES["midpoint"]), Y0)
    # The second is needed at all 20 steps, as the prefix; the first never.
    assert counted.take() == [0, 20, 2]
    solve(counted.term, mlem((1.0, 1.0, 1.0), KEY), Y0)
    assert counted.take() == [0, 0, 20]


def test_nested_coins_evaluate_no_level_that_cancels(counted):
    # Equal probabilities fire together and cancel: the middle level is never needed.
    solution = solve(counted.term, mlem((0.9, 0.3, 0.3), KEY, POLICIES["nested"]), Y0)
    executions = counted.take()
    assert executions == reported(solution) and executions[1] == 0 and executions[2] > 0


WAYS = {
    "jit": lambda run: jax.jit(run)(Y0),
    "vmap": lambda run: jax.vmap(run)(BATCH),
    "jit of vmap": lambda run: jax.jit(jax.vmap(run))(BATCH),
    "vmap of vmap": lambda run: jax.vmap(jax.vmap(run))(BATCH.reshape(2, 2, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_transformations_run_what_one_solve_runs(counted, way):
    solver = mlem(P, KEY)
    state = way(lambda y0: solve(counted.term, solver, y0).solver_state)
    executions = counted.take()
    assert executions == ml.evaluation_report(state).evaluations.tolist()
    solve(counted.term, solver, Y0)
    assert executions == counted.take()


def test_vmap_over_noise(counted):
    grid = jnp.linspace(0, 1, 21)

    def run(key):
        noise = diffrax.ControlTerm(lambda t, y, args: y, ml.GridBrownianPath(grid, (), key=key))
        return solve(diffrax.MultiTerm(counted.term, noise), mlem(P, KEY), Y0)

    solution = jax.vmap(run)(jr.split(KEY, 5))
    executions = counted.take()
    assert executions == reported(solution)
    solve(counted.term, mlem(P, KEY), Y0)
    assert executions == counted.take()


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", [diffrax.RecursiveCheckpointAdjoint(20), diffrax.DirectAdjoint()])
def test_gradients_run_the_same_steps_again(counted, adjoint):
    def loss(y0):
        solution = solve(counted.term, mlem(P, KEY), y0, adjoint=adjoint, max_steps=20)
        return jnp.sum(solution.ys), solution.solver_state

    state = jax.grad(loss, has_aux=True)(Y0)[1]
    # Forwards once, and with a checkpoint for each step once more on the way back.
    assert counted.take() == (2 * ml.evaluation_report(state).evaluations).tolist()


def test_event(counted):
    solution = solve(counted.term, mlem(P, KEY), Y0, event=EVENT)
    assert counted.take() == reported(solution)
    assert ml.evaluation_report(solution.solver_state).steps == solution.stats["num_steps"] < 20


def test_backward_time_and_unequal_steps(counted):
    solution = solve(counted.term, mlem(P, KEY), Y0, t0=1.0, t1=0.0)
    assert counted.take() == reported(solution)
    controller = diffrax.StepTo(jnp.linspace(0, 1, 21) ** 2)
    solution = solve(counted.term, mlem(P, KEY, POLICIES["midpoint"]), Y0, stepsize_controller=controller)
    assert counted.take() == reported(solution) == [20, 12, 4]


def test_coins_per_trajectory_run_whenever_any_fires(counted):
    def run(y0, key):
        solution = solve(counted.term, mlem(P, key, shared=False, record=20), y0)
        return solution.solver_state, solution.ys

    keys = jr.split(KEY, 4)
    state, ys = jax.vmap(run)(BATCH, keys)
    executions = counted.take()
    active = np.asarray(state.firings.active)
    assert executions == active.any(0).sum(0).tolist()
    # Each trajectory's own counts are what it costs alone, and so are its numbers.
    for i in range(4):
        alone, y1 = run(BATCH[i], keys[i])
        assert counted.take() == state.evaluations[i].tolist() == active[i].sum(0).tolist()
        np.testing.assert_allclose(ys[i], y1, rtol=1e-6)
    with pytest.raises(ValueError, match="coins of their own. Report on one"):
        ml.evaluation_report(state)


# --- trajectories of one batch that end at different times ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["independent", "stratified", "midpoint"])
def test_savings_survive_events_at_different_times(counted, name):
    solver = mlem(P, KEY, POLICIES[name])

    def run(y0):
        solution = solve(counted.term, solver, y0, event=EVENT)
        return solution.ts, solution.ys, solution.solver_state

    ts, ys, state = jax.vmap(run)(BATCH)
    assert len(set(ts[:, 0].tolist())) == 4
    assert counted.take() == ml.evaluation_report(state).evaluations.tolist()
    for i in range(4):
        t1, y1, alone = jax.jit(run)(BATCH[i])
        np.testing.assert_allclose((ts[i], *ys[i].T), (t1, *y1.T), rtol=1e-6)
        np.testing.assert_array_equal(state.evaluations[i], alone.evaluations)
    counted.take()


def first_passages(term, solver, thresholds, t0, y0, state):
    """Solves until y falls below a threshold of its own."""
    event = diffrax.Event(lambda t, y, args, **kwargs: y < thresholds)
    solution = diffrax.diffeqsolve(
        term, solver, t0, t0 + 4.0, 0.0625, y0, solver_state=state, event=event,
        saveat=diffrax.SaveAt(t1=True, solver_state=True),
    )  # fmt: skip
    return solution.ts[0], solution.ys[0], solution.solver_state


@pytest.mark.slow
def test_continuing_from_different_steps_keeps_drawing():
    # The first trajectory takes many steps and then few, the second few and then many. While the second goes
    # on alone, its coins must still be new ones.
    term = ml.MultilevelTerm(lambda t, y, args: -y, lambda t, y, args: -y)
    solver = mlem((1.0, 0.25), KEY, POLICIES["midpoint"], record=100)

    def run(first, second):
        t, y, state = first_passages(term, solver, first, 0.0, jnp.array(1.0), None)
        return state.step, first_passages(term, solver, second, t, y, state)[2]

    middle, state = jax.vmap(run)(jnp.array([0.2, 0.9]), jnp.array([0.18, 0.2]))
    further = state.step - middle
    assert middle[0] > 20 > 5 > middle[1] and further[0] < 5 < 20 < further[1]
    fired = np.nonzero(state.firings.fired[1, middle[1] : state.step[1], 1])[0]
    np.testing.assert_array_equal(np.diff(fired), 4)
    assert abs(len(fired) - further[1] / 4) <= 1


@pytest.mark.slow
def test_batched_end_times(counted):
    t1 = jnp.array([0.25, 0.75, 1.0])

    def run(probabilities, dt, shared):
        def one(t1):
            solver = mlem_of(probabilities, shared)
            return solve(counted.term, solver, Y0, t1=t1, dt0=dt).solver_state

        return jax.vmap(one)(t1)

    def mlem_of(probabilities, shared):
        return ml.MLEM(probabilities, coins=POLICIES["midpoint"], key=KEY, shared=shared)

    # Constant probabilities: the longest trajectory decides.
    state = run(P, 0.05, True)
    assert counted.take() == ml.evaluation_report(state).evaluations.tolist() == [20, 12, 4]
    # Rates with steps that divide all the times: the same steps for all.
    rates = ml.Rates([16.0, 8.0, 4.0])
    assert ml.evaluation_report(run(rates, 1 / 16, True)).evaluations.tolist() == [16, 12, 4]
    # Rates on steps that are cut off at different places have different probabilities.
    with pytest.raises(RuntimeError, match="probabilities differ.*shared=False"):
        run(rates, 0.06, True)
    # With coins of their own they may: the rate times the time, to one firing.
    finest = np.asarray(run(rates, 0.06, False).evaluations)[:, 2]
    assert np.all(np.abs(finest - 4.0 * np.asarray(t1)) < 1)
    counted.take()


def test_batched_coins_and_probabilities_are_refused(counted):
    def with_key(key):
        return solve(counted.term, mlem(P, key), Y0).ys

    def with_probabilities(p):
        return solve(counted.term, mlem(p, KEY), Y0).ys

    def with_offset(offset):
        return solve(counted.term, mlem(P, KEY, ml.SystematicCoins(offset)), Y0).ys

    message = r"differ between the trajectories of a vmap.*in_axes=\(0, None\).*shared=False"
    for run, x in [
        (with_key, jr.split(KEY, 3)),
        (with_probabilities, jnp.array([P, P])),
        (with_offset, jnp.array([0.1, 0.2])),
    ]:
        with pytest.raises(ValueError, match=message):
            jax.vmap(run)(x)
