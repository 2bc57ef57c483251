"""Grids of steps among the pilots' times, given by a density of steps or by another grid."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# Points per time at which a density is integrated: the error of a position is then below a tenth of an index.
_RESOLUTION = 20


def grid_of(density: Float[np.ndarray, " knots"], steps: int, times: int) -> tuple[int, ...]:
    """Indices of `steps + 1` of `times + 1` times. Their number per index is proportional to the exponential of a
    piecewise linear function with values `density` at evenly spaced knots."""
    fractions = np.linspace(0, 1, _RESOLUTION * times + 1)
    weights = np.exp(np.interp(fractions, np.linspace(0, 1, len(density)), density))
    cumulative = np.append(0.0, np.cumsum(0.5 * (weights[1:] + weights[:-1])))
    wanted = np.linspace(0, cumulative[-1], steps + 1)
    return _distinct(np.interp(wanted, cumulative, fractions) * times, times)


def resampled(places: Sequence[int], steps: int) -> tuple[int, ...]:
    """A grid with another number of steps and the same relative density of times."""
    old = np.linspace(0, 1, len(places))
    return _distinct(np.interp(np.linspace(0, 1, steps + 1), old, places), places[-1])


def _distinct(places: Float[np.ndarray, " n"], last: int) -> tuple[int, ...]:
    """The nearest integers that increase strictly from 0 to `last`."""
    rounded = np.round(places).astype(int)
    rounded[0], rounded[-1] = 0, last
    for i in range(1, len(rounded)):
        rounded[i] = max(rounded[i], rounded[i - 1] + 1)
    rounded[-1] = last
    for i in reversed(range(len(rounded) - 1)):
        rounded[i] = min(rounded[i], rounded[i + 1] - 1)
    return tuple(int(i) for i in rounded)


def first_densities(ts: Float[np.ndarray, " times"], knots: int) -> list[Float[np.ndarray, " knots"]]:
    """The first densities of a search: those of the given times, of equal steps, and of equal ratios of times."""
    positions = np.linspace(0, len(ts) - 1, knots)
    found = [np.zeros(knots)]
    variables = [ts] if np.any(ts == 0) or ts[0] * ts[-1] < 0 else [ts, np.log(np.abs(ts))]
    for variable in variables:
        slope = np.abs(np.gradient(variable))
        found.append(np.log(np.interp(positions, np.arange(len(ts)), slope)))
    return found
