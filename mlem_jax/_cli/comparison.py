"""The main job: the same images, from the same noise, by several levels and by the finest network alone.

The solves are in `comparison_runs.py`, table and pictures in `comparison_report.py`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .._calibration import FittedPlan, MIDPOINT, Plan
from .._coins import AbstractCoins, IndependentCoins
from .._solver import AbstractMethod, EvaluationReport
from ..diffusion import Ladder
from ..diffusion._ladder import METHODS
from ..diffusion._ladder.methods import calibration_name
from .comparison_runs import Bench, DPM, EULER, Row

EULER_STEPS = (8, 16, 32, 64, 128)
DPM_STEPS = (4, 6, 8, 10, 14)
COIN_SEEDS = 5
# Rows of the finest network alone on either side of the plan's error.
_NEIGHBOURS = 2
# Names of the rows. Those of plans, all at the cost of the first.
ALONE, PAPER, FIRST, SECOND, SEVERAL = (
    "finest network alone, fitted",
    "MLEM, the paper's coins",
    "MLEM",
    "MLAB2",
    "several networks, fitted",
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All that the main job found. `images`, `reports` and `levels` (those kept) are by method, for the first seed;
    `plan` is the one that was asked for, and `ours` its row. `speedup` says, for each rival, how many
    times the evaluations and seconds it needs for the plan's geometric mean error, by its own curve."""

    rows: list[Row]
    speedup: dict[str, dict[str, float]]
    plan: Plan | FittedPlan
    ours: Row
    images: dict[str, Float[np.ndarray, "n h w"]]
    reports: dict[str, EvaluationReport]
    levels: dict[str, tuple[int, ...]]


def equivalent_cost(errors: list[float], costs: list[float], error: float) -> float:
    """The cost at which a curve of measured `(cost, error)` points reaches an error.

    Interpolated between the points on logarithmic axes, and extrapolated from the last two beyond them, where the curve
    of a first-order method is a straight line.
    """
    order = np.argsort(costs)
    x, y = np.log(np.asarray(errors)[order]), np.log(np.asarray(costs)[order])
    # The segment in which the error falls to the wanted one.
    below = np.nonzero(x <= np.log(error))[0]
    right = int(np.clip(below[0] if len(below) else len(x) - 1, 1, len(x) - 1))
    slope = (y[right] - y[right - 1]) / (x[right] - x[right - 1])
    return float(np.exp(y[right] + slope * (np.log(error) - x[right])))


def compare(
    ladder: Ladder,
    *,
    seed: int,
    samples: int,
    budget: float | None,
    error: float | None = None,
    sde: bool,
    in_seconds: bool = False,
    report: Callable[[str], None],
) -> Comparison:
    """Draws the same images by every method and measures error, evaluations and seconds of each.

    **Arguments:**

    - `seed` of the noise and, added to 0, 1, ..., of the coins; `samples`, images in the one batch.
    - `budget` of the plan in finest-level evaluations, or the `error` that it should reach; `in_seconds`, as for
      [`mlem_jax.make_plan`][].
    - `report`, called with a few words before each method.

    Raises `ValueError`, before any image is drawn, for a budget or an error that cannot be met.
    """
    report("planning")
    plan = ladder.plan(budget=budget, error=error, sde=sde, in_seconds=in_seconds)
    plans = _rival_plans(ladder, plan, sde, in_seconds, report)
    name_of_ours = _name(plan, len(ladder.networks) - 1)
    bench = Bench(ladder, seed, samples, sde, report)
    curves = {EULER: [bench.measure_euler(steps) for steps in EULER_STEPS]}
    if not sde:
        curves[DPM] = [bench.measure_dpm(steps) for steps in DPM_STEPS]
    if plans.alone:
        curves[ALONE] = [bench.measure_plan(ALONE, alone, 1) for alone in plans.alone]
    for name, other in plans.others.items():
        bench.measure_plan(name, other, COIN_SEEDS if name == PAPER else 1)
    if name_of_ours == ALONE:
        # The plan is one of the rows of its own curve.
        ours = next(row for row in curves[ALONE] if row.steps == len(plan.ts) - 1)
    else:
        ours = bench.measure_plan(name_of_ours, plan, 1)
    speedup = {}
    for rival, rows in curves.items():
        if rival != name_of_ours and len(rows) > 1:
            errors = [row.typical_error for row in rows]
            speedup[rival] = {
                unit: equivalent_cost(errors, [getattr(row, unit) for row in rows], ours.typical_error)
                / getattr(ours, unit)
                for unit in ("finest_evaluations", "seconds")
            }
    # One row of pictures for each method: the one whose cost is nearest to the plan's.
    images = {"reference": bench.reference}
    for row in bench.rows:
        nearest = min(
            (one for one in bench.rows if one.method == row.method),
            key=lambda one: abs(np.log(one.finest_evaluations / ours.finest_evaluations)),
        )
        images[row.method] = bench.images[row.method, nearest.steps]
    return Comparison(bench.rows, speedup, plan, ours, images, bench.reports, bench.levels)


class _Plans(NamedTuple):
    """With what a plan is compared: fitted steps of the finest network alone, of growing cost, and other plans at the
    plan's cost, by name."""

    alone: list[FittedPlan]
    others: dict[str, Plan]


def _name(plan: Plan | FittedPlan, finest: int) -> str:
    """Of a plan's rows."""
    if isinstance(plan, FittedPlan):
        cheapest, *others = plan.levels
        if others:
            return SEVERAL
        return ALONE if cheapest == finest else f"level {cheapest + 1} alone, fitted"
    return FIRST if plan.method == METHODS[0] else SECOND


def _rival_plans(
    ladder: Ladder, plan: Plan | FittedPlan, sde: bool, in_seconds: bool, report: Callable[[str], None]
) -> _Plans:
    finest = len(ladder.networks) - 1
    others: dict[str, Plan] = {}
    # The paper's coins with all levels, because a plan free to choose would leave most of them out.
    everything = tuple(range(finest + 1))
    wanted: list[tuple[str, AbstractMethod, AbstractCoins, tuple[int, ...] | None]] = [
        (PAPER, METHODS[0], IndependentCoins(), everything),
        (FIRST, METHODS[0], MIDPOINT, None),
        (SECOND, METHODS[1], MIDPOINT, None),
    ]
    for name, method, coins, levels in wanted:
        if name == _name(plan, finest):
            continue
        try:
            calibration = ladder.calibration(sde=sde, method=method)
            others[name] = calibration.plan(
                budget=plan.cost, coins=coins, levels=levels, in_seconds=in_seconds
            )
        except ValueError:
            report(f"no comparison with {name}: not calibrated, or it costs more than the plan")
    kinds = {calibration_name(sde, method) for method in METHODS}
    catalogues = [found.fitted for kind, found in ladder.calibrations.items() if kind in kinds]
    alone = [
        one
        for steps in catalogues
        if steps is not None
        for one in steps.plans(in_seconds=in_seconds)
        if one.levels == (finest,)
    ]
    # A curve from which the cost at the plan's error can be read.
    target = getattr(plan, "typical_error", plan.error)
    above = [one for one in alone if one.typical_error > target]
    below = [one for one in alone if one.typical_error <= target]
    return _Plans(above[-_NEIGHBOURS:] + below[:_NEIGHBOURS], others)
