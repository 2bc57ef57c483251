"""The entries of a catalogue of fitted steps: coefficients from all pilots, and the errors of held-out pilots."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .._solver import MultistepCoefficients
from .fit_law import Law, objective
from .fit_pilots import FitPilots
from .fit_refine import refine
from .fit_rollout import coefficients_of, Memory, roll_out, Rollout, Schedule, typical
from .fit_search import BEATEN, GROUPS, MEMORY, SEARCHED
from .fit_step import everyone, left_out
from .kept_parts import KeptParts

# A longer memory than in the search is used if held-out pilots prefer it.
_LONG_MEMORY = Memory(drifts=5, held=5)
# Steps of the finest level alone are what all others are compared with, by their error. They are fitted for the
# distribution only if this increases the error of held-out pilots by at most this factor. On the shipped ladder it does
# by 4 to 15%, and for several levels by -2 to 2%.
_TOLERATED = 1.05
# Only at most so many steps of the finest level alone are refined, fitted for the distribution too, and with a long
# memory. With more steps errors are below one per cent, and these fits would take the most time.
_MOST_REFINED = 12


class Entry(NamedTuple):
    """An entry of the catalogue: levels, coefficients, the errors of held-out pilots, whether the coefficients are
    fitted, and the distance of the distributions of the pilots' end states and of the references'; the distance is zero
    if steps are fitted to the trajectories alone."""

    levels: tuple[int, ...]
    coefficients: MultistepCoefficients
    errors: np.ndarray
    fitted: bool
    distance: float

    @property
    def typical_error(self) -> float:
        """The geometric mean of the errors."""
        return typical(self.errors)


def catalogue_entries(
    pilots: FitPilots,
    schedules: list[Schedule],
    distribution: float,
    kept: KeptParts,
    advance: Callable[[int, str], None],
) -> list[Entry]:
    """The entries of the catalogue."""
    # Where there are enough pilots, errors are those of pilots that were not used in the search.
    unused = slice(SEARCHED if pilots.count >= 2 * SEARCHED else 0, None)
    names = [field.name for field in dataclasses.fields(MultistepCoefficients)]
    law = Law.of(pilots.path[-1], distribution) if distribution else None
    entries = []
    for number, one in enumerate(schedules):
        name = f"entry-{number + 1}"
        inside = kept.within(name)

        def final(one: Schedule = one, parts: KeptParts = inside) -> tuple[np.ndarray, ...]:
            rollout, better = _final(pilots, one, law, parts, lambda what: advance(0, what))
            table = coefficients_of(rollout, pilots.ts)
            end = rollout.states[-1].y.astype(float)
            distance = 0.0 if law is None else law.distance(end, pilots.path[-1].astype(float))
            columns = (getattr(table, name) for name in names)
            return (*columns, rollout.errors, np.array(better), np.array(distance))

        *numbers, errors, better, distance = kept.arrays(name, final)
        table = MultistepCoefficients(**dict(zip(names, numbers, strict=True)))
        entries.append(Entry(one.levels, table, errors[unused], bool(better), float(distance)))
        advance(1, f"all pilots, cost {one.cost(pilots.costs):.1f}")
    return entries


def _final(
    pilots: FitPilots,
    schedule: Schedule,
    law: Law | None,
    kept: KeptParts,
    report: Callable[[str], None],
) -> tuple[Rollout, bool]:
    """The roll-out of all pilots with held-out coefficients, and whether its errors are smaller than with the classical
    coefficients, which are used otherwise.

    Each group of pilots is held out of one fit. The coefficients of the catalogue are the mean of these fits, in which
    all pilots have the same weight."""
    groups = left_out(pilots.count, GROUPS)
    # The classical coefficients are rolled out on some of the pilots only, unless they are needed.
    few = pilots.part(min(SEARCHED, pilots.count))
    rival = roll_out(few, schedule, MEMORY, everyone(few.count), classical=True).typical_error

    def error(rollout: Rollout) -> float:
        return typical(rollout.errors[: few.count])

    also, alone = None, schedule.levels == (len(pilots.costs) - 1,)
    many = alone and len(schedule.evaluated) > _MOST_REFINED
    if law is not None and not many:
        # Held-out distances to the pilots' own references do not rate distributions, for which a long memory is worse.
        also = roll_out(pilots, schedule, MEMORY, groups, law=law)
        if not alone and error(also) < rival:
            return also, True
    memories = (MEMORY,) if many else (MEMORY, _LONG_MEMORY)
    tried = [roll_out(pilots, schedule, memory, groups) for memory in memories]
    held_out = min(tried, key=lambda rollout: rollout.typical_error)
    if not many:
        held_out = refine(pilots, held_out, report, kept)
    if also is not None and error(also) < min(_TOLERATED * error(held_out), rival):
        held_out = also
    if error(held_out) < rival:
        return held_out, True
    return roll_out(pilots, schedule, MEMORY, everyone(pilots.count), classical=True), False


def worth_keeping(entries: list[Entry], costs: Float[np.ndarray, " levels"], share: float) -> list[Entry]:
    """The entries with the finest level alone, and those that cheaper ones do not beat both in their errors and in the
    objective of the fit."""
    cost = np.array([entry.coefficients.evaluations @ costs[list(entry.levels)] for entry in entries])
    error = np.array([entry.typical_error for entry in entries])
    measures = (error, objective(share, error, np.array([entry.distance for entry in entries])))

    def beaten(i: int) -> bool:
        cheaper = cost <= cost[i]
        return all(np.any(cheaper & (measure < BEATEN * measure[i])) for measure in measures)

    finest = (len(costs) - 1,)
    return [entry for i, entry in enumerate(entries) if entry.levels == finest or not beaten(i)]
