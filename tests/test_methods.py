"""Methods: the solvers that they make, what these cost, and that files keep them."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import decay, POLICIES, solve

import mlem_jax as ml

TERM = ml.MultilevelTerm(*[decay(1 + 0.1 * k) for k in range(3)])
METHODS = {
    "MLEM": ml.EulerMaruyama(),
    "MLAB2": ml.AdamsBashforth(),
    "MLAB2, log": ml.AdamsBashforth("log"),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


@every_method
@pytest.mark.parametrize(
    "p",
    [(1.0, 0.4, 0.1), (1.0, 1.0, 0.1), (1.0, 0.25, 0.25), (1.0, 1.0, 1.0), (1.0, 0.5), (1.0,)],
    ids=str,
)
def test_expected_evaluations_are_the_solver_s_for_coins_without_randomness(method, p):
    term = ml.MultilevelTerm(*TERM.levels[: len(p)])
    ts = jnp.linspace(1.0, 2.0, 21)
    # As an array, whose ones are known beforehand, and as a table, whose are not.
    for probabilities in (
        ml.ConstantProbabilities(p),
        ml.TabulatedProbabilities(ts[:-1], np.tile(p, (20, 1))),
    ):
        solver = method.multilevel_solver(probabilities, coins=POLICIES["midpoint"], key=jr.key(0))
        counted = solve(term, solver, jnp.ones(2), t0=1.0, t1=2.0).solver_state.evaluations
        expected = ml.expected_evaluations(probabilities, ts, method=method, coins=POLICIES["midpoint"])
        np.testing.assert_array_equal(expected, counted)
