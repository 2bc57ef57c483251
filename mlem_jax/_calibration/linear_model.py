r"""The linear model: the coin error at the end of a solve, predicted from the measured effects.

To first order in the increments, a solve with weights `w` ends at

$$x_T - x_T^{(K)} = \sum_n \sum_k h_n (w_{k,n} - 1) J_n D_k(t_n, x_n)$$

away from Euler on the finest level (Jacot 2026; docs/theory.md, "Probabilities"). The calibration has measured the
terms of this sum on pilot trajectories, so the error of any weights of any policy is predicted without evaluating a
level.
"""

from typing import NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, Key

from .._coins import AbstractCoins, level_coefficients, simulate_counts
from .._solver import AbstractMethod
from .measurements import Measurements

# Keys of random coins in the search for a plan, and in the prediction for the plan that is found. The standard error of
# a predicted RMS error is then 1 / sqrt(2 * 12) = 20% in the search, where all candidates use the same keys and it
# partially cancels, and 1 / sqrt(2 * 128) = 6% in the prediction, below the 10% of 32 pilots. More keys in the search
# may find better plans: with 24 the predicted error of the shipped ladder (MLAB2, budget 10) is 12% smaller, with 6 it
# is 5% smaller, both within the noise of the pilots; the time of the search is proportional to the number.
FEW_SEEDS, MANY_SEEDS = 12, 128
_TINY = 1e-300


class Selection(NamedTuple):
    """The indices of the kept levels, the finest last, and the stride in the measured steps."""

    levels: tuple[int, ...]
    stride: int


class LinearModel(NamedTuple):
    """The measurements for some of the levels on a coarser grid. All arrays are padded to the shape of the
    measurements, so that one compiled simulation serves all selections; padded entries always fire and have no
    effect."""

    effects: Float[np.ndarray, "steps levels paths"]
    lengths: Float[np.ndarray, " steps"]
    costs: Float[np.ndarray, " levels"]
    steps: int
    pad: int
    pilots: int
    method: AbstractMethod


def select(measured: Measurements, selection: Selection) -> LinearModel:
    """The linear model of a selection. An increment between kept levels is a sum of increments between all levels."""
    levels, stride = selection
    num_levels, ts = measured.num_levels, measured.ts[::stride]
    steps, pad = len(ts) - 1, num_levels - len(levels)
    effects = _where_they_act(measured, stride).reshape(steps, num_levels, -1)
    padded = np.zeros((measured.num_steps, num_levels, effects.shape[2]))
    costs = np.zeros(num_levels)
    before = -1
    for column, level in enumerate(levels):
        padded[:steps, pad + column] = effects[:, before + 1 : level + 1].sum(1)
        costs[pad + column] = measured.costs[level]
        before = level
    lengths = np.zeros(measured.num_steps)
    lengths[:steps] = np.abs(np.diff(ts))
    return LinearModel(padded, lengths, costs, steps, pad, measured.num_pilots, measured.method)


def _where_they_act(measured: Measurements, stride: int) -> Float[np.ndarray, "steps levels pilots probes"]:
    """The effects of the steps of a coarser grid, at the position in a step where the method applies corrections;
    interpolated between the starts of two measured steps."""
    effects = measured.effects.astype(float)
    starts = np.arange(0, len(effects), stride)
    position = measured.method.correction_position
    ts = np.abs(measured.ts - measured.ts[0])
    place = np.interp((1 - position) * ts[starts] + position * ts[starts + stride], ts, np.arange(len(ts)))
    # Nothing was measured at the end of the last step.
    place = np.minimum(place, len(effects) - 1)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, len(effects) - 1)
    part = (place - below)[:, None, None, None]
    return (1 - part) * effects[below] + part * effects[above]


def firing_counts(
    coins: AbstractCoins, p: Float[np.ndarray, "steps levels"], keys: Key[Array, " seeds"]
) -> Int[np.ndarray, "seeds steps levels"]:
    """How many times each level fires in each step of a solve, for each key, as a NumPy array."""
    return np.asarray(simulate_counts(coins, jnp.asarray(p, jnp.result_type(float)), keys))


def predict(
    model: LinearModel, p: Float[np.ndarray, "steps levels"], coins: AbstractCoins, *, seeds: int = FEW_SEEDS
) -> tuple[float, float, float]:
    """For probabilities of the padded shape: the expected cost in finest-level evaluations, the RMS coin error at the
    end, and the relative standard error of that prediction, from the differences between pilots."""
    covariance = coins.weight_covariance(p)
    if covariance is None:
        squares = _squares(model, _weights(coins, p, seeds))
    else:
        moves = model.lengths[:, None, None] * model.effects
        squares = np.einsum("njp,njk,nkp->p", moves, np.asarray(covariance), moves, optimize=True)
    # The directions of one pilot share its trajectory; only different pilots are independent.
    by_pilot = np.mean(squares.reshape(model.pilots, -1), axis=1)
    mean = float(np.mean(by_pilot))
    uncertainty = 0.5 * float(np.std(by_pilot) / np.sqrt(len(by_pilot)) / max(mean, _TINY))
    return expected_cost(model, p, coins, seeds=seeds), float(np.sqrt(mean)), uncertainty


def expected_cost(
    model: LinearModel, p: Float[np.ndarray, "steps levels"], coins: AbstractCoins, *, seeds: int = FEW_SEEDS
) -> float:
    """The expected cost of a solve in finest-level evaluations, for probabilities of the padded shape."""
    # Nothing is evaluated in the rows and columns of padding.
    kept = slice(0, model.steps), slice(model.pad, None)
    active, fired = coins.active_probability(p[kept]), p[kept]
    if active is None:
        weights = _weights(coins, p, seeds)[:, *kept]
        active, fired = np.mean(level_coefficients(weights) != 0, axis=0), np.mean(weights != 0, axis=0)
    return float(np.sum(model.method.evaluations(np.asarray(active), fired) * model.costs[model.pad :]))


def error_of_counts(
    model: LinearModel, p: Float[np.ndarray, "steps levels"], counts: Int[np.ndarray, "seeds steps levels"]
) -> float:
    """The RMS coin error at the end for given firings."""
    return float(np.sqrt(np.mean(_squares(model, _ratio(counts, p)))))


def _weights(
    coins: AbstractCoins, p: Float[np.ndarray, "steps levels"], seeds: int
) -> Float[np.ndarray, "seeds steps levels"]:
    keys = jr.split(jr.key(0), 1 if coins.deterministic else seeds)
    return _ratio(firing_counts(coins, p, keys), p)


def _ratio(
    counts: Int[np.ndarray, "seeds steps levels"], p: Float[np.ndarray, "steps levels"]
) -> Float[np.ndarray, "seeds steps levels"]:
    # In the solver's precision, in which equal probabilities have equal weights.
    precision = jnp.result_type(float)
    return (counts.astype(precision) / p.astype(precision)).astype(float)


def _squares(
    model: LinearModel, weights: Float[np.ndarray, "seeds steps levels"]
) -> Float[np.ndarray, " paths"]:
    """The mean square over seeds of the coin error at the end, for each pilot and direction."""
    moved = np.einsum("snk,nkp->sp", (weights - 1) * model.lengths[:, None], model.effects, optimize=True)
    return np.mean(moved**2, axis=0)
