"""One level alone: what a multilevel plan is measured against, and the answer where it does not pay."""

from typing import NamedTuple

import numpy as np

from .._coins import AbstractCoins
from .calibration import Calibration
from .plan import Plan

_MOST_STEPS = 1e6


class Alone(NamedTuple):
    """One level with so many steps, its error, and that error's relative standard error."""

    level: int
    steps: int
    error: float
    spread: float


def best_alone(calibration: Calibration, budget: float | int, steps: int | None = None) -> Alone | None:
    """The best single level within a budget, among the step counts that the calibration has tried and those
    between them, or with exactly so many steps; `None` if the budget pays for none."""
    total, found = len(calibration.ts) - 1, []
    for level, cost in enumerate(calibration.costs):
        counts = np.arange(calibration.single_steps[0], total + 1) if steps is None else np.array([steps])
        counts = counts[counts * cost <= budget]
        if len(counts):
            errors = calibration.single_level_error(level, counts)
            best = int(np.argmin(errors))
            spread = np.interp(counts[best], calibration.single_steps, calibration.single_spread[level])
            found.append(Alone(level, int(counts[best]), float(errors[best]), float(spread)))
    return min(found, key=lambda alone: alone.error, default=None)


def steps_for_error(calibration: Calibration, level: int, error: float | int) -> float:
    """Steps on one level alone for this error: the fewest that reach it, infinite if none do."""
    counts = np.geomspace(calibration.single_steps[0], _MOST_STEPS, 4000)
    reached = calibration.single_level_error(level, counts) <= error
    return float(counts[np.argmax(reached)]) if np.any(reached) else np.inf


def speedups(calibration: Calibration, error: float | int, cost: float) -> tuple[float, float]:
    """Cost of the finest level alone, and of the best level alone, at this error, over `cost`."""
    needed = [
        calibration.costs[k] * steps_for_error(calibration, k, error) for k in range(calibration.num_levels)
    ]
    return float(needed[-1] / cost), float(min(needed) / cost)


def alone_plan(
    calibration: Calibration, coins: AbstractCoins, alone: Alone, multilevel_error: float | None
) -> Plan:
    """The plan that is one level alone."""
    total = len(calibration.ts) - 1
    # A subset of the calibrated times, so that a noise path on their grid still fits.
    ts = calibration.ts[np.round(np.linspace(0, total, alone.steps + 1)).astype(int)]
    cost = alone.steps * float(calibration.costs[alone.level])
    reason = (
        "no combination of levels fits the budget"
        if multilevel_error is None
        else f"the best combination of levels would err {multilevel_error:.3g}"
    )
    over_finest, over_single = speedups(calibration, alone.error, cost)
    return Plan(
        ts=ts,
        levels=(alone.level,),
        table=np.ones((alone.steps, 1)),
        coins=coins,
        order=calibration.order,
        clock=calibration.clock,
        costs=calibration.costs[[alone.level]],
        cost=cost,
        error=alone.error,
        discretisation=alone.error,
        coin_error=0.0,
        relative_error_of_prediction=alone.spread,
        nonlinearity=1.0,
        speedup_over_finest=over_finest,
        speedup_over_single=over_single,
        finest_error=calibration.finest_error,
        advice=(
            f"Use level {alone.level + 1} alone: it errs {alone.error:.3g} at this budget; {reason}. ML-EM does not "
            "pay here.",
        ),
    )
