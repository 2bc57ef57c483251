"""Probabilities over time for given levels, steps and cost: the family in which plans are searched."""

import jax.random as jr
import numpy as np
from jaxtyping import Float

from .._bisection import bisect
from .._coins import AbstractCoins
from .linear_model import expected_cost, firing_counts, LinearModel

# With fewer firings of a level in a solve, its windows are so long that its increment changes sign within them. The one
# of 60 plans in benchmarks/results/prediction.json whose error is 1.6 times the prediction has 3.6 firings of the
# finest level; those with more are within a factor of 1.33. Plans also warn below this number.
FEW_FIRINGS = 4
# The least derivative of the cost in a probability, in costs of the level. The derivative vanishes for a level below
# one that always fires; its probability is then limited by 1 for any small number here (half and twice of it give the
# same plan, benchmarks/constants.py).
_LEAST_MARGINAL_COST = 1e-3
# The least probability of a level at a time at which it has no effect, over its largest one: a weight 1 / p is finite.
_LEAST_SHAPE = 1e-6
# The marginal costs depend on the probabilities: fixed-point iterations from probabilities of 0. With two instead of
# four predicted errors change by at most 1%, with eight not at all (benchmarks/constants.py, here and below).
_ROUNDS = 4
# The scale of the probabilities is searched between exp(-30) and exp(30), to a relative 1%. With half or twice of it
# the search may choose other shares, with predicted errors of 0.85 to 1.03 times those here.
_LOG_RANGE, _WIDTH = 30.0, 0.01
_TINY = 1e-30


def _rms_effect(model: LinearModel) -> Float[np.ndarray, "steps levels"]:
    return np.sqrt(np.mean(model.effects**2, axis=2))


def _shape(model: LinearModel, effect: np.ndarray, p: np.ndarray) -> np.ndarray:
    """`h sqrt(V / C)`, the optimum for coins that are independent over steps (docs/theory.md, "Probabilities"). `V` is
    the mean square of the effect and `C` the derivative of the expected cost with respect to `p_k`: a firing of level
    `k` evaluates the levels `k` and `k - 1`, unless they are evaluated anyway."""
    finer = np.concatenate([p[:, 1:], np.zeros_like(p[:, :1])], axis=1)
    coarser = np.concatenate([np.ones_like(p[:, :1]), p[:, :-1]], axis=1)
    below = np.concatenate([[0.0], model.costs[:-1]])
    marginal = model.costs * (1 - finer) + below * (1 - coarser)
    # Padded columns cost nothing.
    marginal = np.maximum(marginal, _LEAST_MARGINAL_COST * model.costs + 1e-12)
    shape = model.lengths[:, None] * effect / np.sqrt(marginal)
    return np.maximum(shape, _LEAST_SHAPE * shape.max(axis=0) + _TINY)


def _table(model: LinearModel, effect: np.ndarray, scale: float, shares: np.ndarray) -> np.ndarray:
    """Probabilities `min(1, scale * share_k * shape_k)`, and 1 for the cheapest level and the padding."""
    p = np.zeros_like(model.effects[:, :, 0])
    p[:, : model.pad + 1] = 1.0
    for _ in range(_ROUNDS):
        wanted = np.minimum(1.0, scale * shares * _shape(model, effect, p))
        p[: model.steps, model.pad + 1 :] = wanted[: model.steps, model.pad + 1 :]
        p[model.steps :] = 1.0
    return p


def _tiled(model: LinearModel, p: np.ndarray, coins: AbstractCoins) -> np.ndarray:
    """For deterministic coins, probabilities scaled slightly such that the sum over a level's probabilities is the
    number of its firings. Its windows then cover the whole solve, without a fraction of a window at the end.

    Only for methods whose coin error is so small that this fraction matters (`AbstractMethod.whole_windows`), and not
    for levels with few firings: their increments change sign within a window, and a smaller weight has the smaller
    error."""
    if not (model.method.whole_windows and coins.deterministic):
        return p
    firings = firing_counts(coins, p[: model.steps], jr.key(0)[None])[0].sum(0)
    p = p.copy()
    for column in range(model.pad + 1, p.shape[1]):
        mine = p[: model.steps, column]
        rare = mine < 1
        rare_firings = firings[column] - np.sum(~rare)
        if rare_firings > 0 and firings[column] >= FEW_FIRINGS:
            mine[rare] = np.minimum(1.0, mine[rare] * rare_firings / np.sum(mine[rare]))
    return p


def probabilities_at_cost(
    model: LinearModel, coins: AbstractCoins, budget: float | int, shares: np.ndarray, seeds: int
) -> np.ndarray | None:
    """The probabilities of this family whose expected cost is the budget; `None` if all of them cost more."""

    effect = _rms_effect(model)

    def table(log_scale: float) -> np.ndarray:
        return _tiled(model, _table(model, effect, float(np.exp(log_scale)), shares), coins)

    def affordable(log_scale: float) -> bool:
        return expected_cost(model, table(log_scale), coins, seeds=seeds) <= budget

    if not affordable(-_LOG_RANGE):
        return None
    low, _ = bisect(affordable, -_LOG_RANGE, _LOG_RANGE, width=_WIDTH)
    return table(low)
