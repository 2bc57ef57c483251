"""Probabilities over time for given levels, steps and cost: the family that plans are searched in."""

import jax.random as jr
import numpy as np

from .._coins import AbstractCoins
from .linear_model import expected_cost, LinearModel, toss

FEW_LOOKS = 4


def _shape(model: LinearModel, p: np.ndarray) -> np.ndarray:
    """`h sqrt(V / C)`, the optimum for coins that are independent over steps, with `C` the derivative of the
    expected cost in `p_k`: a look at `D_k` evaluates `f^k` and `f^{k-1}`, unless they run anyway."""
    effect = np.sqrt(np.mean(model.effects**2, axis=2))
    finer = np.concatenate([p[:, 1:], np.zeros_like(p[:, :1])], axis=1)
    coarser = np.concatenate([np.ones_like(p[:, :1]), p[:, :-1]], axis=1)
    below = np.concatenate([[0.0], model.costs[:-1]])
    marginal = model.costs * (1 - finer) + below * (1 - coarser)
    # Where the next level always fires too, a look is all but free.
    marginal = np.maximum(marginal, 1e-3 * model.costs + 1e-12)
    shape = model.lengths[:, None] * effect / np.sqrt(marginal)
    # A level that changes nothing at some time is still looked at now and then.
    return np.maximum(shape, 1e-6 * shape.max(axis=0) + 1e-30)


def _table(model: LinearModel, scale: float, shares: np.ndarray) -> np.ndarray:
    """Probabilities `min(1, scale * share_k * shape_k)`, and 1 for the cheapest level and the padding."""
    p = np.zeros_like(model.effects[:, :, 0])
    p[:, : model.pad + 1] = 1.0
    # The marginal costs depend on the probabilities themselves; four rounds settle that.
    for _ in range(4):
        wanted = np.minimum(1.0, scale * shares * _shape(model, p))
        p[: model.steps, model.pad + 1 :] = wanted[: model.steps, model.pad + 1 :]
        p[model.steps :] = 1.0
    return p


def _tiled(model: LinearModel, p: np.ndarray, coins: AbstractCoins) -> np.ndarray:
    """For a pattern without randomness, probabilities scaled a little such that a level's sum is the number of its
    looks: their windows then tile the whole solve, and nothing is left over at the end.

    Only for methods of such accuracy that the leftover matters; and not where looks are few: there an increment changes
    sign within its window, and a smaller weight errs less."""
    if not (model.method.whole_windows and coins.deterministic):
        return p
    looks = toss(coins, p[: model.steps], jr.key(0)[None])[0].sum(0)
    p = p.copy()
    for column in range(model.pad + 1, p.shape[1]):
        mine = p[: model.steps, column]
        rare = mine < 1
        due = looks[column] - np.sum(~rare)
        if due > 0 and looks[column] >= FEW_LOOKS:
            mine[rare] = np.minimum(1.0, mine[rare] * due / np.sum(mine[rare]))
    return p


def probabilities_at_cost(
    model: LinearModel, coins: AbstractCoins, budget: float | int, shares: np.ndarray, seeds: int
) -> np.ndarray | None:
    """The probabilities of this family that cost the budget, or `None` if none costs so little."""

    def table(log_scale: float) -> np.ndarray:
        return _tiled(model, _table(model, float(np.exp(log_scale)), shares), coins)

    low, high = -30.0, 30.0
    if expected_cost(model, table(low), coins, seeds=seeds) > budget:
        return None
    while high - low > 0.01:
        middle = 0.5 * (low + high)
        cheap = expected_cost(model, table(middle), coins, seeds=seeds) <= budget
        low, high = (middle, high) if cheap else (low, middle)
    return table(low)
