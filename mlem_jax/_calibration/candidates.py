"""Candidates for a multilevel plan: levels, steps, and the levels' shares of the cost."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .._coins import AbstractCoins
from .allocation import probabilities_at_cost
from .linear_model import FEW_SEEDS, MANY_SEEDS, predict, select, Selection
from .measurements import Measurements
from .trials import Trials

# The shares are refined for this number of the best selections of levels and steps. With 1 or 6 the plans of the
# shipped ladder are the same (benchmarks/constants.py). Half or twice of the needed gain or of the factors below change
# predicted errors by less than 3% on average, and by 15% at most.
_REFINED = 3
# A change of a share is accepted if it multiplies the predicted error by at most this factor. A smaller gain is within
# the noise of the pilots, whose standard error is some 10%.
_WORTHWHILE = 0.98
# A share is multiplied or divided by these factors, one after the other.
_FACTORS = (2.0, 2.0**0.5)
# The weight of the error with random positions in the last choice, against that of the pattern itself. On the shipped
# ladder and fresh noise the plan for a budget of 3 has 1.35 times the error with 1 (probability flow, Euler-Maruyama);
# with 1/2 or 0 the plan for 6 fits the pilots, and errs 1.6 times as much as predicted (reverse SDE).
_AVERAGE_WEIGHT = 2 / 3
_TINY = 1e-300


class Search(NamedTuple):
    """The input of the search for a plan: measurements, trial runs, a coin policy, and steps and levels if given."""

    measured: Measurements
    trials: Trials
    coins: AbstractCoins
    steps: int | None
    levels: tuple[int, ...] | None


class Candidate(NamedTuple):
    """A multilevel solve and its predictions. `nonlinearity` is the predicted coin error over that of the linear
    model."""

    selection: Selection
    table: Float[np.ndarray, "steps levels"]
    cost: float
    error: float
    discretisation: float
    coin_error: float
    uncertainty: float
    nonlinearity: float


def best_candidate(search: Search, budget: float | int) -> Candidate | None:
    """The multilevel solve with the least predicted error within a budget; `None` if the budget is too small for
    any."""
    equal = np.ones(search.measured.num_levels)
    # The search treats a deterministic pattern as if its positions were random. Otherwise it would fit the positions at
    # which the pattern fires on the few pilots.
    chooser = search._replace(coins=search.coins.randomised())
    found: list[Candidate] = []
    # The error is at least the discretisation error, so the search can end where that exceeds the error of the last
    # candidate that is refined.
    selections = sorted(_selections(search, budget), key=lambda selection: _discretisation(search, selection))
    for selection in selections:
        if len(found) == _REFINED and _discretisation(search, selection) >= found[-1].error:
            break
        candidate = _candidate(chooser, selection, budget, equal, seeds=FEW_SEEDS)
        if candidate is not None:
            found = sorted([*found, candidate], key=lambda candidate: candidate.error)[:_REFINED]
    refined = [_refine(chooser, candidate, equal, budget) for candidate in found]
    if not refined:
        return None
    plans = [
        (average, _candidate(search, average.selection, budget, shares, seeds=MANY_SEEDS))
        for average, shares in refined
    ]
    return min(plans, key=lambda pair: _score(*pair))[1]


def _score(average: Candidate, found: Candidate | None) -> float:
    """What the last choice minimises, for a candidate with random positions and for its own pattern. A pattern fires a
    whole number of times, and its few firings may be at unfavourable times, which the average does not show."""
    if found is None:
        return np.inf
    return _AVERAGE_WEIGHT * np.log(average.error) + (1 - _AVERAGE_WEIGHT) * np.log(found.error)


def _discretisation(search: Search, selection: Selection) -> float:
    """The error of the finest level with the steps of a selection."""
    measured = search.measured
    return float(measured.single_level_error(measured.num_levels - 1, measured.num_steps // selection.stride))


def _candidate(
    search: Search, selection: Selection, budget: float | int, shares: np.ndarray, *, seeds: int
) -> Candidate | None:
    measured, coins = search.measured, search.coins
    model = select(measured, selection)
    table = probabilities_at_cost(model, coins, budget, shares, seeds)
    if table is None:
        return None
    cost, linear, uncertainty = predict(model, table, coins, seeds=seeds)
    coin_error, uncertainty = search.trials.corrected(coins.name, budget, linear, uncertainty)
    discretisation = _discretisation(search, selection)
    return Candidate(
        selection=selection,
        table=table[: model.steps, model.pad :],
        cost=cost,
        error=search.trials.total_error(coins.name, budget, coin_error, discretisation),
        discretisation=discretisation,
        coin_error=coin_error,
        uncertainty=uncertainty,
        nonlinearity=coin_error / max(linear, _TINY),
    )


def _refine(
    search: Search, start: Candidate, shares: np.ndarray, budget: float | int
) -> tuple[Candidate, np.ndarray]:
    """Changes the levels' shares of the cost, one at a time, as long as the predicted error decreases."""
    best, pad = start, len(shares) - len(start.selection.levels)
    for factor in _FACTORS:
        for column in range(pad + 2, len(shares)):
            for change in (factor, 1 / factor):
                while True:
                    moved = shares.copy()
                    moved[column] *= change
                    found = _candidate(search, start.selection, budget, moved, seeds=FEW_SEEDS)
                    if found is None or found.error > _WORTHWHILE * best.error:
                        break
                    best, shares = found, moved
    return best, shares


def _selections(search: Search, budget: float | int) -> Iterator[Selection]:
    """All subsets of levels with the finest one, combined with all measured numbers of steps, or the given ones, for
    which the steps of the cheapest level cost less than the budget."""
    measured, steps, levels = search.measured, search.steps, search.levels
    total, last = measured.num_steps, measured.num_levels - 1
    strides = [total // count for count in reversed(measured.single_steps.tolist())]
    if steps is not None:
        if steps < 1 or total % steps:
            raise ValueError(f"steps={steps} must divide the calibration's {total} steps.")
        strides = [total // steps]
    if levels is None:
        subsets = [(*[k for k in range(last) if mask >> k & 1], last) for mask in range(1, 2**last)]
    else:
        if list(levels) != sorted(set(levels)) or len(levels) < 2 or levels[-1] != last or levels[0] < 0:
            raise ValueError(
                f"levels={levels}: indices in increasing order are expected, at least two, the last "
                f"{last} (the finest)."
            )
        subsets = [tuple(levels)]
    for stride in strides:
        for subset in subsets:
            if measured.costs[subset[0]] * (total // stride) < budget:
                yield Selection(subset, stride)
