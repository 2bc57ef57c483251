"""The methods whose images the study of quality compares, in every setting."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax.tree_util as jtu
import numpy as np
from _image_methods import planned
from _methods import marching, multilevel, Shared
from _quality_fits import Between, FAMILIES, Fits, Judge, Switch
from _quality_images import Entry
from _rivals import DPMSolver, Plain, SDEDPMSolver

import mlem_jax as ml
from mlem_jax.diffusion import Ladder

DPM, UNIPC = "DPM-Solver++(2M)", "UniPC"
PATH, LAW = "finest alone, fitted for the path", "finest alone, fitted for the distribution"
SMALL = "level {} alone, fitted"
INDEPENDENT, FIRST, SECOND = "MLEM, independent coins (the paper)", "MLEM", "MLAB2"
SEVERAL, SEVERAL_LAW = "several levels, fitted for the path", "several levels, fitted for the distribution"
CONVERGED = "converged"
# For which steps are taken from a catalogue.
BUDGETS = (0.1, 0.2, 0.4, 0.6, 0.9, 1.2, 1.6, 2.2, 2.6, 3.2, 3.7, 4.2, 4.6, 5.2, 5.6, 6.2, 6.6, 7.2, 7.6)


class Effort(NamedTuple):
    """Numbers of steps of each rival, of the fitted single network for the path and for the distribution, and of each
    smaller level alone; evaluations of the finest level when switching; budgets of plans with the paper's coins, of
    first and of second order; how many of the catalogue's entries are fitted for the path too."""

    dpm: tuple[int, ...]
    unipc: tuple[int, ...]
    path: tuple[int, ...]
    law: tuple[int, ...]
    small: dict[int, tuple[int, ...]]
    switched: tuple[int, ...]
    budgets: tuple[tuple[float, ...], ...]
    several: int


EFFORTS = {
    "smoke": Effort((2,), (), (2,), (2,), {}, (1,), ((3.0,), (), (3.0,)), 1),
    "quick": Effort(
        (2, 3, 4, 6, 8),
        (4, 6, 8),
        (2, 3, 4, 5, 6, 8),
        (2, 3, 4, 5, 6, 8),
        {0: (24,), 1: (16,), 2: (8,)},
        (2, 3),
        ((1.6, 2.6, 3.7, 5.0),) * 2 + ((2.6, 3.7, 5.0),),
        4,
    ),
    "full": Effort(
        (2, 3, 4, 5, 6, 8, 10),
        (2, 3, 4, 5, 6, 8, 10),
        (1, 2, 3, 4, 5, 6, 7, 8),
        (2, 3, 4, 5, 6, 8),
        {0: (16, 32), 1: (8, 12, 16, 24), 2: (5, 8, 12, 16)},
        (1, 2, 3, 4, 5),
        ((1.2, 1.6, 2.0, 2.6, 3.1, 3.7, 4.3, 5.0, 6.5, 8.0),) * 3,
        12,
    ),
}


def converged(problem: Shared, ladder: Ladder, steps: int) -> Entry:
    """A multistep method of second order with many steps of the finest level."""
    finest = Plain(problem.levels[-1], 1.0)
    step = DPMSolver(finest) if problem.diffusion is None else SDEDPMSolver(finest)
    ts = np.asarray(ladder.config.process.grid(steps))
    return Entry(CONVERGED, marching(CONVERGED, f"{steps} steps", step, ts))


def rivals(problem: Shared, ladder: Ladder, effort: Effort) -> list[Entry]:
    """The samplers that people use, on Karras' grid."""
    finest = Plain(problem.levels[-1], 1.0)
    methods = [(DPM, DPMSolver(finest), effort.dpm), (UNIPC, DPMSolver(finest, True), effort.unipc)]
    if problem.diffusion is not None:
        methods = [(f"SDE-{DPM}", SDEDPMSolver(finest), effort.dpm)]
    return [
        Entry(name, marching(name, f"{n} steps", step, np.asarray(ladder.config.process.grid(n))))
        for name, step, counts in methods
        for n in counts
    ]


def plans(ladder: Ladder, problem: Shared, effort: Effort) -> list[Entry]:
    """Plans with coins: the paper's, and by default, of both orders."""
    sde = problem.diffusion is not None
    midpoint = ml.SystematicCoins(offset=0.5)
    kinds: list[tuple[str, ml.AbstractMethod, ml.AbstractCoins]] = [
        (INDEPENDENT, ml.EulerMaruyama(), ml.IndependentCoins()),
        (FIRST, ml.EulerMaruyama(), midpoint),
    ]
    if not sde:
        kinds.append((SECOND, ml.AdamsBashforth(), midpoint))
    found = []
    for (kind, method, coins), budgets in zip(kinds, effort.budgets, strict=False):
        calibration, seen = ladder.calibration(sde=sde, method=method), set()
        for budget in budgets:
            # The paper's method has several levels, also where the finest one alone, or a smaller one, is better.
            plan = plan_of(calibration, budget, coins, several=kind == INDEPENDENT)
            if plan is None:
                continue
            identity = np.asarray(plan.table).tobytes() + np.asarray(plan.ts).tobytes()
            if identity not in seen:
                seen.add(identity)
                random = not coins.deterministic
                setting = f"budget {budget:g}, levels {', '.join(str(level + 1) for level in plan.levels)}"
                found.append(
                    Entry(kind, planned(problem, kind, plan, coins, setting, 1, random=random), identity)
                )
    return found


def plan_of(
    calibration: ml.Calibration, budget: float, coins: ml.AbstractCoins, *, several: bool
) -> ml.Plan | None:
    """The plan for a budget, or the best one that has `several` levels and the finest among them; `None` if nothing is
    as cheap."""
    levels_tried: list[tuple[int, ...] | None] = [None]
    if several:
        *smaller, finest = range(len(calibration.costs))
        counts = range(1, len(smaller) + 1)
        levels_tried = [(*below, finest) for n in counts for below in itertools.combinations(smaller, n)]
    found = []
    for levels in levels_tried:
        try:
            found.append(calibration.plan(budget=budget, coins=coins, levels=levels))
        except ValueError:
            continue
    return min(found, key=lambda plan: plan.error, default=None)


def fitted(kind: str, problem: Shared, levels: tuple[int, ...], table: ml.MultistepCoefficients) -> Entry:
    """Fitted steps on some levels of the ladder."""
    counts = ", ".join(f"{k + 1}: {n}" for k, n in zip(levels, table.evaluations.tolist(), strict=True))
    setting = f"{len(table.ts) - 1} steps, evaluations {counts}"
    solver = ml.LinearMultistep(table)
    method = multilevel(problem, kind, setting, lambda key: solver, table.ts, levels, random=False)
    return Entry(kind, method, identity_of(table))


def identity_of(table: ml.MultistepCoefficients) -> bytes:
    return b"".join(np.asarray(leaf).tobytes() for leaf in jtu.tree_leaves(table))


def single_networks(
    problem: Shared, fits: Fits, effort: Effort, steps: ml.FittedSteps | None, judge: Judge
) -> Iterator[Entry]:
    """The finest level, chosen for the distribution, and for the path as the catalogue has it, if there is one."""
    finest = fits.finest
    known = {} if steps is None else {
        len(table.evaluated): table
        for levels, table in zip(steps.levels, steps.coefficients, strict=True)
        if levels == (finest,)
    }  # fmt: skip
    for kind, counts in ((LAW, effort.law), (PATH, effort.path)):
        for n in counts:
            table = known.get(n) or fits.alone(finest, n)
            if kind == LAW:
                table = fits.judged(n, np.asarray(table.ts), judge)
            yield fitted(kind, problem, (finest,), table)


def small_networks(problem: Shared, fits: Fits, effort: Effort) -> Iterator[Entry]:
    """Each smaller level alone."""
    for level, counts in effort.small.items():
        for n in counts if level < fits.finest else ():
            yield fitted(SMALL.format(level + 1), problem, (level,), fits.alone(level, n))


def switched(problem: Shared, fits: Fits, effort: Effort) -> Iterator[Entry]:
    """Two networks in turn, with fitted steps."""
    for family in FAMILIES:
        for large in effort.switched:
            way = fits.switched(family, large)
            if way is not None:
                yield switched_entry(family, problem, fits.level_of(way[0]), *way)


def switched_entry(
    kind: str, problem: Shared, level: Between, way: Switch, table: ml.MultistepCoefficients
) -> Entry:
    """Fitted steps on a level that is one network early, another late."""
    starts = np.asarray(table.ts)[:-1]
    small = (starts <= float(level.begin)) & (starts > float(level.end))
    # A term of one level, whose cost changes with time: its mean is what counts.
    mean, steps = float(np.mean(np.where(small, problem.costs[way.small], 1.0))), len(starts)
    own = problem._replace(levels=(level,), costs=(mean,))
    setting = f"level {way.small + 1} from {way.begin:g} to {way.end:g}, {steps} steps"
    solver = ml.LinearMultistep(table)
    method = multilevel(own, kind, setting, lambda key: solver, table.ts, (0,), random=False)
    return Entry(kind, method, identity_of(table))


def of_catalogue(
    problem: Shared, fits: Fits, effort: Effort, steps: ml.FittedSteps, most: float
) -> Iterator[Entry]:
    """The steps on several levels that a catalogue proposes for each of some budgets: as they are, fitted for the
    distribution, and, from one evaluation on, with coefficients fitted for the path."""
    found, least = {}, min(plan.cost for plan in steps.plans())
    for budget in [budget for budget in BUDGETS if least <= budget <= most]:
        plan = steps.plan(budget=budget)
        if len(plan.levels) > 1:
            found[identity_of(plan.coefficients)] = plan
    for plan in found.values():
        yield fitted(SEVERAL_LAW, problem, plan.levels, plan.coefficients)
    for plan in [plan for plan in found.values() if plan.cost > 1][: effort.several]:
        table = fits.for_the_path(plan.levels, plan.coefficients)
        yield fitted(SEVERAL, problem, plan.levels, table)
