"""States that become infinite or NaN: what a solve reports, what becomes of a batch, and events' turn."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import solve

import mlem_jax as ml

SOLVERS = {"MLEM": ml.MLEM([1.0, 0.5]), "MLAB2": ml.MLAB2([1.0, 0.5])}
every_solver = pytest.mark.parametrize("name", SOLVERS)
# NaN where the state is above 5.
TERM = ml.MultilevelTerm(lambda t, y, args: -y, lambda t, y, args: jnp.where(y > 5.0, jnp.nan, -1.1 * y))


@every_solver
def test_one_bad_trajectory_leaves_the_batch_alone(name):
    def run(y0):
        solution = solve(TERM, SOLVERS[name], y0, steps=10, throw=False)
        return solution.ys[0], solution.result == diffrax.RESULTS.successful

    starts = jnp.array([1.0, 10.0, 3.0])
    ends, successful = jax.vmap(run)(starts)
    assert successful.tolist() == [True, False, True]
    assert np.isnan(ends[1])
    good = np.array([0, 2])
    alone = [run(starts[i])[0] for i in good]
    np.testing.assert_allclose(ends[good], alone, rtol=1e-6)


@every_solver
def test_the_error_names_the_solver_and_the_remedies(name):
    with pytest.raises(RuntimeError, match=f"{name} computed a state.*check_finite=False.*throw=False"):
        solve(TERM, SOLVERS[name], jnp.asarray(10.0), steps=10)


@every_solver
def test_an_event_at_nan_gets_its_turn(name):
    # NaN from t = 0.5 on. The finest level is looked at in every second step, so the state is NaN at the end of the
    # first such step.
    term = ml.MultilevelTerm(lambda t, y, args: -y, lambda t, y, args: jnp.where(t > 0.45, jnp.nan, -1.1 * y))
    event = diffrax.Event(lambda t, y, args, **kwargs: jnp.isnan(y))
    solution = solve(term, SOLVERS[name], jnp.asarray(1.0), steps=10, event=event)
    assert solution.result == diffrax.RESULTS.event_occurred
    np.testing.assert_allclose(solution.ts, [0.6], rtol=1e-6)
