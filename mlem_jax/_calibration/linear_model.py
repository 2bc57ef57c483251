r"""The error that coins cause at the end of a solve, predicted from a calibration.

To first order in the increments, a solve with weights `w` ends at

$$x_T - x_T^{(K)} = \sum_n \sum_k h_n (w_{k,n} - 1) J_n D_k(t_n, x_n)$$

away from Euler on the finest level (theory: section 2 of the paper's analysis, Jacot 2026). The calibration
has the terms of that sum on pilot trajectories, so any pattern of weights, of any policy, can be priced
without evaluating a level again.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from .._coins import AbstractCoins, IndependentCoins, NestedCoins, SystematicCoins
from .._solver.base import AbstractMultilevelSolver
from .calibration import Calibration
from .plan import coins_name

FEW_SEEDS = 12  # for searching
MANY_SEEDS = 128  # for what is promised: the error's own error is then 1 / sqrt(2 * 128) = 6%


class Selection(NamedTuple):
    """Which levels are kept (indices, the finest last) and every how manyth step of the calibration."""

    levels: tuple[int, ...]
    stride: int


class Kicks(NamedTuple):
    """A calibration seen by a solve of kept levels on a coarser grid, padded to the calibration's shape
    so that one compiled simulation serves all selections: padded entries always fire and move nothing."""

    values: Float[np.ndarray, "steps levels paths"]
    lengths: Float[np.ndarray, " steps"]
    costs: Float[np.ndarray, " levels"]
    steps: int
    pad: int
    pilots: int
    order: int


def select(calibration: Calibration, selection: Selection) -> Kicks:
    """Increments between kept levels are sums of those between all levels."""
    levels, stride = selection
    total, num_levels = len(calibration.ts) - 1, calibration.num_levels
    ts = calibration.ts[::stride]
    steps, pad = len(ts) - 1, num_levels - len(levels)
    kicks = _where_they_act(calibration, stride).reshape(steps, num_levels, -1)
    values = np.zeros((total, num_levels, kicks.shape[2]))
    costs = np.zeros(num_levels)
    before = -1
    for column, level in enumerate(levels):
        values[:steps, pad + column] = kicks[:, before + 1 : level + 1].sum(1)
        costs[pad + column] = calibration.costs[level]
        before = level
    lengths = np.zeros(total)
    lengths[:steps] = np.abs(np.diff(ts))
    return Kicks(values, lengths, costs, steps, pad, calibration.kicks.shape[2], calibration.order)


def _where_they_act(calibration: Calibration, stride: int) -> Float[np.ndarray, "steps levels pilots probes"]:
    """The kicks of steps of so many of the calibration's: at the start of a step for MLEM, in its middle for MLAB2."""
    kicks = calibration.kicks.astype(float)
    starts = np.arange(0, len(kicks), stride)
    if calibration.order == 1:
        return kicks[starts]
    # The middle of the time, between two starts of the calibration's own steps.
    ts = np.abs(calibration.ts - calibration.ts[0])
    place = np.interp((ts[starts] + ts[starts + stride]) / 2, ts, np.arange(len(ts)))
    # There is none at the end of the last one.
    place = np.minimum(place, len(kicks) - 1)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, len(kicks) - 1)
    part = (place - below)[:, None, None, None]
    return (1 - part) * kicks[below] + part * kicks[above]


@eqx.filter_jit
def _counts(coins: AbstractCoins, p: Float[Array, "steps levels"], keys: Array) -> Int[Array, "..."]:
    """Firings of a policy over one solve for each key, `(seeds, steps, levels)`."""

    def one(key: Array) -> Int[Array, "steps levels"]:
        def step(state, inputs):
            count, state = coins.toss(inputs[0], state, inputs[1], key)
            return state, count

        return jax.lax.scan(step, coins.init(p.shape[1]), (p, jnp.arange(p.shape[0])))[1]

    return jax.vmap(one)(keys)


def is_deterministic(coins: AbstractCoins) -> bool:
    """Whether the policy draws nothing at random."""
    return isinstance(coins, SystematicCoins) and coins.offset is not None


def toss(
    coins: AbstractCoins, p: Float[np.ndarray, "steps levels"], keys: Key[Array, " seeds"]
) -> Int[np.ndarray, "seeds steps levels"]:
    """How often each level fires in each step of a solve, for each key."""
    return np.asarray(_counts(coins, jnp.asarray(p, jnp.result_type(float)), keys))


def _weights(
    coins: AbstractCoins, p: Float[np.ndarray, "steps levels"], *, seeds: int = FEW_SEEDS
) -> Float[np.ndarray, "seeds steps levels"]:
    keys = jr.split(jr.key(0), 1 if is_deterministic(coins) else seeds)
    return _ratio(toss(coins, p, keys), p)


def _ratio(
    counts: Int[np.ndarray, "seeds steps levels"], p: Float[np.ndarray, "steps levels"]
) -> Float[np.ndarray, "seeds steps levels"]:
    # In the solver's precision, in which equal probabilities give equal weights.
    precision = jnp.result_type(float)
    return (counts.astype(precision) / p.astype(precision)).astype(float)


def _evaluated(w: np.ndarray) -> np.ndarray:
    """Where a level's coefficient `w_k - w_{k+1}` is not zero."""
    return w != np.concatenate([w[..., 1:], np.zeros_like(w[..., :1])], axis=-1)


def predict(
    kicks: Kicks, p: Float[np.ndarray, "steps levels"], coins: AbstractCoins, *, seeds: int = FEW_SEEDS
) -> tuple[float, float, float]:
    """Cost in finest evaluations, RMS error of the end state due to the coins, and the relative standard
    error of that prediction (from the spread over pilots), for probabilities of the padded shape."""
    if isinstance(coins, IndependentCoins | NestedCoins):
        squares = _closed_error(kicks, p, nested=isinstance(coins, NestedCoins))
        cost = expected_cost(kicks, p, coins)
    else:
        w = _weights(coins, p, seeds=seeds)
        squares = _squares(kicks, w)
        cost = _cost(kicks, w)
    # The directions of one pilot share its trajectory; only pilots are independent.
    by_pilot = np.mean(squares.reshape(kicks.pilots, -1), axis=1)
    mean = float(np.mean(by_pilot))
    spread = float(np.std(by_pilot) / np.sqrt(len(by_pilot)) / max(mean, 1e-300))
    return cost, float(np.sqrt(mean)), 0.5 * spread


def corrected(
    calibration: Calibration, coins: AbstractCoins, budget: float | int, linear: float, spread: float
) -> tuple[float, float]:
    """The coins' error at this budget and its relative standard error, from those of the linear model and from
    what trial runs of the policy showed, if there were any.

    What a trial erred beyond the linear model's square is the work of second-order terms, which depend on how long
    the windows are (the budget) and not on how well the linear parts happen to cancel, so it is added; what it
    erred less is a factor. Straight lines in logarithms between budgets, constant beyond.
    """
    mine = [i for i, name in enumerate(calibration.check_coins) if name == coins_name(coins)]
    if not mine:
        return linear, spread
    mine.sort(key=lambda i: calibration.check_budget[i])
    x, here = np.log(calibration.check_budget[mine]), np.log(budget)
    # A trial may explode.
    predicted, measured = (
        np.clip(values[mine], 1e-30, 1e30)
        for values in (calibration.check_predicted, calibration.check_measured)
    )
    beyond = np.sqrt(np.maximum(measured**2 - predicted**2, (1e-3 * measured) ** 2))
    factor = np.exp(np.interp(here, x, np.log(np.minimum(1.0, measured / predicted))))
    error = float(np.hypot(factor * linear, np.exp(np.interp(here, x, np.log(beyond)))))
    return error, max(spread, float(np.interp(here, x, calibration.check_spread[mine])))


def expected_cost(
    kicks: Kicks, p: Float[np.ndarray, "steps levels"], coins: AbstractCoins, *, seeds: int = FEW_SEEDS
) -> float:
    """Cost of a solve in finest evaluations, for probabilities of the padded shape."""
    if isinstance(coins, IndependentCoins | NestedCoins):
        return _closed_cost(kicks, p, nested=isinstance(coins, NestedCoins))
    return _cost(kicks, _weights(coins, p, seeds=seeds))


def error_of_counts(
    kicks: Kicks, p: Float[np.ndarray, "steps levels"], counts: Int[np.ndarray, "seeds steps levels"]
) -> float:
    """RMS error of the end state for given firings."""
    return float(np.sqrt(np.mean(_squares(kicks, _ratio(counts, p)))))


def _squares(kicks: Kicks, w: np.ndarray) -> np.ndarray:
    """Mean squares over seeds, for each path."""
    moved = np.einsum("snk,nkp->sp", (w - 1) * kicks.lengths[:, None], kicks.values, optimize=True)
    return np.mean(moved**2, axis=0)


def _cost(kicks: Kicks, w: np.ndarray) -> float:
    # Without the rows of padding, in which nothing is evaluated.
    w = w[:, : kicks.steps]
    return _total(kicks, np.mean(_evaluated(w), axis=0), np.mean(w != 0, axis=0))


def _total(
    kicks: Kicks, evaluated: Float[np.ndarray, "steps levels"], fired: Float[np.ndarray, "steps levels"]
) -> float:
    """The cost of solves, from how often on average each level is evaluated, by MLEM, and fires in each step.

    MLAB2 evaluates the cheapest level in every step, and again where the next one fires."""
    if kicks.order == 2:
        evaluated = np.array(evaluated)
        again = fired[:, kicks.pad + 1] if kicks.pad + 1 < fired.shape[1] else 0.0
        evaluated[:, kicks.pad] = 1 + again
    return float(np.sum(evaluated * kicks.costs))


def _closed_error(kicks: Kicks, p: np.ndarray, *, nested: bool) -> np.ndarray:
    """For coins that are independent over steps, whose (co)variances are known: `1 / p_k - 1`, and for
    one uniform number per step `1 / max(p_j, p_k) - 1`. Mean squares per path."""
    moves = kicks.lengths[:, None, None] * kicks.values
    if not nested:
        return np.sum((1 / p - 1)[:, :, None] * moves**2, axis=(0, 1))
    covariance = 1 / np.maximum(p[:, :, None], p[:, None, :]) - 1
    return np.einsum("njp,njk,nkp->p", moves, covariance, moves, optimize=True)


def _closed_cost(kicks: Kicks, p: np.ndarray, *, nested: bool) -> float:
    """A level is evaluated unless its weight and the next finer one's agree."""
    p = p[: kicks.steps]
    finer = np.concatenate([p[:, 1:], np.zeros_like(p[:, :1])], axis=1)
    if nested:
        active = np.where(p == finer, 0.0, np.maximum(p, finer))
    else:
        agree = np.where(p == finer, p * finer, 0.0)
        active = p + finer - p * finer - agree
    return _total(kicks, np.where((p >= 1) & (finer >= 1), 0.0, active), p)


def firing_pattern(
    coins: AbstractCoins, p: Float[np.ndarray, "steps levels"], solver: Any
) -> Bool[np.ndarray, "steps levels"]:
    """In which steps each level's coin comes up, for a solver's key; always, for Euler on one level."""
    if not isinstance(solver, AbstractMultilevelSolver):
        return np.ones(p.shape, bool)
    return toss(coins, p, solver.key[None])[0] > 0
