"""What `evaluation_report` says of a solve: evaluations, costs, and the times of the last steps."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import CountedLevels, mlem, POLICIES, solve

import mlem_jax as ml

KEY = jr.key(0)
P = (1.0, 0.5, 0.2)
Y0 = jnp.array([1.0, 2.0])


@pytest.fixture(scope="module")
def counted():
    return CountedLevels(3, costs=(1, 5, 25))


def test_record_is_a_ring_of_the_last_steps(counted):
    def report(record):
        solver = mlem((0.9, 0.5, 0.2), KEY, record=record)
        return ml.evaluation_report(solve(counted.term, solver, Y0).solver_state)

    whole, ring, long = report(20), report(7), report(50)
    for k in range(3):
        last = whole.firing_times[k][whole.firing_times[k] > 0.62]  # of 7 steps, from 0.65 on
        np.testing.assert_array_equal(ring.firing_times[k], last)
        np.testing.assert_array_equal(long.firing_times[k], whole.firing_times[k])
        last = whole.evaluation_times[k][whole.evaluation_times[k] > 0.62]
        np.testing.assert_array_equal(ring.evaluation_times[k], last)
    assert ring.evaluations.tolist() == whole.evaluations.tolist()
    counted.take()


def test_report_adds_up_costs(counted):
    state = solve(counted.term, mlem(P, KEY, POLICIES["midpoint"]), Y0).solver_state
    report = ml.evaluation_report(state)
    assert report.steps == 20 and report.firing_times is None
    assert report.finest_evaluations == pytest.approx(20 / 25 + 12 / 5 + 4)
    assert ml.evaluation_report(state, costs=[1, 2, 4]).finest_evaluations == pytest.approx(5 + 6 + 4)
    rows = str(report).splitlines()
    assert rows[0] == "20 steps" and rows[2].split() == ["1", "20", "0.0400", "0.80"]
    assert rows[-1].split() == ["total", "7.20"]
    counted.take()


def test_report_errors():
    solution = solve(CountedLevels(2).term, mlem((1.0, 0.5), KEY), Y0)
    with pytest.raises(ValueError, match=r"Write MultilevelTerm\(..., costs="):
        _ = ml.evaluation_report(solution.solver_state).finest_evaluations
    with pytest.raises(ValueError, match=r"2 levels and costs of shape \(3,\)"):
        ml.evaluation_report(solution.solver_state, costs=[1, 2, 3])
