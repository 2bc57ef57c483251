"""ML-EM with independent coins whose probabilities are learned by stochastic gradients: the paper's second method."""

from typing import Any

import diffrax
import equinox as eqx
import jax.random as jr
from _methods import additive_noise, Method, multilevel, Shared
from jaxtyping import PRNGKeyArray

import mlem_jax as ml

NAME = "ML-EM, independent coins, learned"
# Initial states that batches are drawn from; their noise is that of no other study.
_STATES, _KEY = 64, 6200
ITERATIONS, BATCH = 100, 8


class _MakeTerms(eqx.Module):
    """The terms of one trajectory, with its own noise."""

    problem: Shared

    def __call__(self, key: PRNGKeyArray) -> Any:
        term = ml.MultilevelTerm(*self.problem.levels, costs=self.problem.costs)
        if self.problem.diffusion is None:
            return term
        path = ml.GridBrownianPath(self.problem.ts, self.problem.shape, key=key)
        return diffrax.MultiTerm(term, additive_noise(self.problem, path))


def learned(
    problem: Shared,
    calibration: ml.Calibration,
    budget: float,
    *,
    iterations: int = ITERATIONS,
    batch_size: int = BATCH,
) -> Method | None:
    """All levels with the steps and, at the start, the probabilities of a plan; `None` if there is no such plan."""
    everything = tuple(range(len(problem.levels)))
    try:
        plan = calibration.plan(budget=budget, coins=ml.IndependentCoins(), levels=everything)
    except ValueError:
        return None
    keys = jr.split(jr.key(_KEY))
    probabilities, _ = ml.learn_probabilities(
        _MakeTerms(problem),
        plan.ts,
        problem.scale * jr.normal(keys[0], (_STATES, *problem.shape)),
        key=keys[1],
        start=plan.probabilities,
        budget=plan.cost,
        iterations=iterations,
        batch_size=batch_size,
    )

    def solver(key: PRNGKeyArray) -> ml.MLEM:
        return ml.MLEM(probabilities, coins=ml.IndependentCoins(), key=key)

    setting = f"budget {budget:g}, {len(plan.ts) - 1} steps, {iterations} iterations"
    return multilevel(problem, NAME, setting, solver, plan.ts, everything, random=True)
