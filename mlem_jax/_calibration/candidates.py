"""Multilevel plans as candidates: which levels, which steps, and what share of the cost each level gets."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .._coins import AbstractCoins
from .allocation import probabilities_at_cost
from .linear_model import FEW_SEEDS, MANY_SEEDS, predict, select, Selection
from .measurements import Measurements
from .trials import Trials

_REFINED = 3  # How many of the best selections have their levels' shares refined.
# A refinement must lower the predicted error by this factor: a smaller gain may be the pilots' luck.
_WORTHWHILE = 0.98


class Search(NamedTuple):
    """What a plan is chosen from: measurements, trial runs, a policy, and the steps and levels if they are given."""

    measured: Measurements
    trials: Trials
    coins: AbstractCoins
    steps: int | None
    levels: tuple[int, ...] | None


class Candidate(NamedTuple):
    """A multilevel solve and what is predicted for it. `nonlinearity` is the coins' error over that of the linear
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
    """The multilevel solve of least predicted error within a budget; `None` if the budget pays for none."""
    equal = np.ones(search.measured.num_levels)
    # A pattern without randomness is chosen as if its phases were random; otherwise the choice would fit accidents of
    # the pilots.
    chooser = search._replace(coins=search.coins.randomised())
    found = [
        candidate
        for selection in _selections(search, budget)
        if (candidate := _candidate(chooser, selection, budget, equal)) is not None
    ]
    found.sort(key=lambda candidate: candidate.error)
    refined = [_refine(chooser, candidate, equal, budget) for candidate in found[:_REFINED]]
    if not refined:
        return None
    best, shares = min(refined, key=lambda pair: pair[0].error)
    return _candidate(search, best.selection, budget, shares, seeds=MANY_SEEDS)


def _candidate(
    search: Search, selection: Selection, budget: float | int, shares: np.ndarray, *, seeds: int = FEW_SEEDS
) -> Candidate | None:
    measured, coins = search.measured, search.coins
    model = select(measured, selection)
    table = probabilities_at_cost(model, coins, budget, shares, seeds)
    if table is None:
        return None
    cost, linear, uncertainty = predict(model, table, coins, seeds=seeds)
    coin_error, uncertainty = search.trials.corrected(coins.name, budget, linear, uncertainty)
    discretisation = float(measured.single_level_error(measured.num_levels - 1, model.steps))
    return Candidate(
        selection=selection,
        table=table[: model.steps, model.pad :],
        cost=cost,
        error=search.trials.total_error(coins.name, budget, coin_error, discretisation),
        discretisation=discretisation,
        coin_error=coin_error,
        uncertainty=uncertainty,
        nonlinearity=coin_error / max(linear, 1e-300),
    )


def _refine(
    search: Search, start: Candidate, shares: np.ndarray, budget: float | int
) -> tuple[Candidate, np.ndarray]:
    """Moves the levels' shares of the cost, one at a time, as long as the predicted error falls."""
    best, pad = start, len(shares) - len(start.selection.levels)
    for factor in (2.0, 2.0**0.5):
        for column in range(pad + 2, len(shares)):
            for change in (factor, 1 / factor):
                while True:
                    moved = shares.copy()
                    moved[column] *= change
                    found = _candidate(search, start.selection, budget, moved)
                    if found is None or found.error > _WORTHWHILE * best.error:
                        break
                    best, shares = found, moved
    return best, shares


def _selections(search: Search, budget: float | int) -> Iterator[Selection]:
    """All sets of levels that keep the finest one, with all step counts that were measured, or those asked for, whose
    cheapest level the budget pays for."""
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
