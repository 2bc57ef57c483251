"""Plans with a single level: the baseline of multilevel plans, and the result where these are not cheaper."""

from typing import NamedTuple

import numpy as np

from .._coins import AbstractCoins
from .measurements import Measurements
from .plan import Plan

# Numbers of steps that are tried for an error, evenly spaced in their logarithm: neighbours differ by 0.3%.
_TRIED, _MOST_STEPS = 4000, 1e6


class SingleLevel(NamedTuple):
    """A solve with a single level: the level's index, the number of steps, the error, and its relative standard
    error."""

    level: int
    steps: int
    error: float
    uncertainty: float


def best_alone(measured: Measurements, budget: float | int, steps: int | None = None) -> SingleLevel | None:
    """The best single level within a budget, with any number of steps in the measured range, or with exactly `steps`;
    `None` if the budget is too small for all levels."""
    total, found = measured.num_steps, []
    for level, cost in enumerate(measured.costs):
        counts = np.arange(measured.single_steps[0], total + 1) if steps is None else np.array([steps])
        counts = counts[counts * cost <= budget]
        if len(counts):
            errors = measured.single_level_error(level, counts)
            best = int(np.argmin(errors))
            uncertainty = np.interp(counts[best], measured.single_steps, measured.single_uncertainty[level])
            found.append(SingleLevel(level, int(counts[best]), float(errors[best]), float(uncertainty)))
    return min(found, key=lambda alone: alone.error, default=None)


def steps_for_error(measured: Measurements, level: int, error: float | int) -> float:
    """The smallest number of steps with which a level alone reaches this error; infinite if none does."""
    counts = np.geomspace(measured.single_steps[0], _MOST_STEPS, _TRIED)
    reached = measured.single_level_error(level, counts) <= error
    return float(counts[np.argmax(reached)]) if np.any(reached) else np.inf


def speedups(measured: Measurements, error: float | int, cost: float) -> tuple[float, float]:
    """The costs at which the finest level alone, and the best level alone, reach this error, over `cost`."""
    needed = [measured.costs[k] * steps_for_error(measured, k, error) for k in range(measured.num_levels)]
    return float(needed[-1] / cost), float(min(needed) / cost)


def single_level_plan(
    measured: Measurements, coins: AbstractCoins, alone: SingleLevel, multilevel_error: float | None
) -> Plan:
    """The plan of a single level. `multilevel_error` is the error of the best multilevel plan, if there is one."""
    total = measured.num_steps
    # A subset of the calibrated times, so that a Brownian path on their grid can be used.
    ts = measured.ts[np.round(np.linspace(0, total, alone.steps + 1)).astype(int)]
    cost = alone.steps * float(measured.costs[alone.level])
    if measured.num_levels == 1:
        advice = "There is one level; it is solved alone."
    else:
        reason = (
            "no combination of levels fits the budget"
            if multilevel_error is None
            else f"the error of the best combination of levels is {multilevel_error:.3g}"
        )
        advice = (
            f"Use level {alone.level + 1} alone: its error is {alone.error:.3g} at this budget; {reason}. "
            f"{measured.method.name} does not pay here."
        )
    over_finest, over_single = speedups(measured, alone.error, cost)
    return Plan(
        ts=ts,
        levels=(alone.level,),
        table=np.ones((alone.steps, 1)),
        coins=coins,
        method=measured.method,
        costs=measured.costs[[alone.level]],
        cost=cost,
        error=alone.error,
        discretisation=alone.error,
        coin_error=0.0,
        relative_error_of_prediction=alone.uncertainty,
        nonlinearity=1.0,
        speedup_over_finest=over_finest,
        speedup_over_single=over_single,
        finest_error=measured.finest_error,
        levels_id=measured.levels_id,
        state_id=measured.state_id,
        advice=(advice,),
    )
