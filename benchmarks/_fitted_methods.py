"""Methods with fitted steps: those of a catalogue, and rivals that switch between a large and a small network along
the trajectory.

T-Stitch (Pan et al. 2024) switches once; FlowBlending (2025) evaluates the large network at both ends. With fitted
coefficients, both are schedules that evaluate the large network in each step of a part of the trajectory. The small one
is evaluated in all steps, which costs 0.03 of a large evaluation, or 0.16 for level 3.
"""

from collections.abc import Callable

import jax.random as jr
import numpy as np
from _methods import Method, multilevel, Shared

import mlem_jax as ml
from mlem_jax._calibration.fit_pilots import FitPilots
from mlem_jax._calibration.fit_rollout import coefficients_of, Memory, roll_out, Schedule
from mlem_jax._calibration.fit_step import left_out
from mlem_jax._term import FixedTerms
from mlem_jax.diffusion import Ladder

ALONE_FITTED, SEVERAL_FITTED = "finest alone, fitted", "several levels, fitted"
LARGE_SMALL, LARGE_SMALL_LARGE = "large, small, fitted", "large, small, large, fitted"
# Steps of the grids, those of the finest network alone, and the pilots on which the split is chosen.
STEPS, PILOTS, FINE, GROUPS = (6, 8), 32, 128, 4


def stepping(
    problem: Shared, name: str, levels: tuple[int, ...], coefficients: ml.MultistepCoefficients
) -> Method:
    """Fitted steps as a method."""
    counts = ", ".join(
        f"{k + 1}: {n}" for k, n in zip(levels, coefficients.evaluations.tolist(), strict=True)
    )
    setting = f"{len(coefficients.ts) - 1} steps, evaluations {counts}"
    solver = ml.LinearMultistep(coefficients)
    return multilevel(problem, name, setting, lambda key: solver, coefficients.ts, levels, random=False)


def fitted_steps(problem: Shared, ladder: Ladder) -> list[Method]:
    """Of the finest level alone and of several, as the ladder's calibration of the probability flow has them."""
    kept = ladder.calibrations.get("ode_2")
    if problem.diffusion is not None or kept is None or kept.fitted is None:
        return []
    return [method for _, method in useful_steps(problem, kept.fitted)]


def useful_steps(problem: Shared, steps: ml.FittedSteps) -> list[tuple[ml.FittedPlan, Method]]:
    """The plans of a catalogue with the finest level alone or with several levels, each as a method."""
    finest, found = len(problem.levels) - 1, []
    for plan in steps.plans():
        if len(plan.levels) > 1 or plan.levels == (finest,):
            name = ALONE_FITTED if len(plan.levels) == 1 else SEVERAL_FITTED
            found.append((plan, stepping(problem, name, plan.levels, plan.coefficients)))
    return found


def switching(
    problem: Shared,
    ladder: Ladder,
    steps: ml.FittedSteps,
    make: Callable[[Shared, str, tuple[int, ...], ml.MultistepCoefficients], Method],
    *,
    smoke: bool,
) -> list[Method]:
    """For each grid and each number of large evaluations the split that is best on the pilots."""
    process, finest = ladder.config.process, len(problem.levels) - 1
    grids = [
        np.asarray(table.ts)
        for levels, table in zip(steps.levels, steps.coefficients, strict=True)
        if levels == (finest,) and len(table.ts) - 1 in ((2,) if smoke else STEPS)
    ]
    count = 8 if smoke else PILOTS
    ts = np.asarray(process.grid(FINE), float)
    pilots = FitPilots(
        FixedTerms(ladder.term()),
        ts,
        1,
        process.s_max * jr.normal(jr.key(6), (count, *ladder.config.shape)),
        args=None,
        labels=None,
        key=jr.key(0),
        costs=steps.costs,
        time_variable="log",
        batch_size=32,
    )
    groups, memory, found = left_out(count, GROUPS), Memory(), []
    for grid in grids:
        places = tuple(int(np.argmin(np.abs(np.log(ts / t)))) for t in grid)
        total = len(places) - 1
        for name, small in ((LARGE_SMALL, finest - 2), (LARGE_SMALL_LARGE, finest - 2)):
            for large in range(1, total):
                firsts = [large] if name == LARGE_SMALL else range(large)
                schedules = [
                    Schedule(
                        places,
                        small,
                        tuple(
                            (finest,) if n < first or n >= total - large + first else () for n in range(total)
                        ),
                        repeats=False,
                    )
                    for first in firsts
                ]
                tried = [roll_out(pilots, schedule, memory, groups) for schedule in schedules]
                best = min(tried, key=lambda rollout: rollout.typical_error)
                found.append(make(problem, name, best.schedule.levels, coefficients_of(best, ts)))
    return found
