"""Changes of a schedule, one number at a time. A change is kept if it reduces the typical error of the pilots."""

from collections.abc import Sequence

import numpy as np

from .fit_rollout import Schedule
from .searcher import Found, Searcher
from .step_grids import resampled

# A change is kept if it reduces the logarithm of the typical error by at least this much. A smaller gain is within the
# noise of the pilots.
GAIN = 0.004
# A time is moved by these fractions of the distance to its neighbour.
_SHIFTS = (0.25, 0.1)
# An evaluation of a higher level is moved by these numbers of steps.
_DISTANCES = (3, 1)
# The factor by which the number of steps of the base is changed.
_STEPS_FACTOR = 1.3


def with_evaluations(
    places: tuple[int, ...], base: int, level: int, wanted: Sequence[float | int] | np.ndarray
) -> Schedule:
    """A schedule that evaluates a level in the steps whose starts are nearest to some times."""
    starts = np.asarray(places[:-1])
    steps = {int(np.argmin(np.abs(starts - time))) for time in wanted}
    return Schedule(places, base, tuple((level,) if n in steps else () for n in range(len(starts))))


def evaluation_steps(schedule: Schedule, level: int) -> list[int]:
    """The steps in which a level is evaluated."""
    return [n for n, levels in enumerate(schedule.evaluated) if level in levels]


def changed_evaluations(
    schedule: Schedule, level: int, less: int | None, more: int | None
) -> Schedule | None:
    """The schedule with an evaluation of a level removed from one step and added to another; `None` if the level is
    already evaluated there."""
    evaluated = [set(levels) for levels in schedule.evaluated]
    if more is not None:
        if not 0 <= more < len(evaluated) or level in evaluated[more]:
            return None
        evaluated[more].add(level)
    if less is not None:
        evaluated[less].discard(level)
    return schedule._replace(evaluated=tuple(tuple(sorted(levels)) for levels in evaluated))


def one_evaluation_more(searcher: Searcher, best: Found, level: int) -> Found:
    """With one more evaluation, in the middle of the gap between two evaluations in which the error is smallest."""
    steps = evaluation_steps(best.schedule, level)
    edges = [0, *steps, len(best.schedule.evaluated)]
    middles = sorted({(a + b) // 2 for a, b in zip(edges, edges[1:], strict=False)})
    changed = [changed_evaluations(best.schedule, level, None, middle) for middle in middles]
    tried = [searcher.try_out(schedule, best) for schedule in changed if schedule is not None]
    return min(tried, key=lambda found: found.typical_error) if tried else best


def moved_evaluations(searcher: Searcher, best: Found, level: int) -> Found:
    """Moves the evaluations of a level to nearby steps, one after the other."""
    for distance in _DISTANCES:
        for i in range(len(evaluation_steps(best.schedule, level))):
            for sign in (1, -1):
                while True:
                    step = evaluation_steps(best.schedule, level)[i]
                    schedule = changed_evaluations(best.schedule, level, step, step + sign * distance)
                    found = None if schedule is None else searcher.try_out(schedule, best)
                    if found is None or found.merit >= best.merit - GAIN:
                        break
                    best = found
    return best


def with_steps(schedule: Schedule, count: int) -> Schedule:
    """The schedule with another number of steps of the base, and the other evaluations at about the same times."""
    places = resampled(schedule.places, count)
    changed = Schedule(places, schedule.base, ((),) * count, schedule.repeats)
    for level in schedule.above:
        wanted = [schedule.places[n] for n in evaluation_steps(schedule, level)]
        extra = with_evaluations(places, schedule.base, level, wanted)
        pairs = zip(changed.evaluated, extra.evaluated, strict=True)
        changed = changed._replace(evaluated=tuple(tuple(sorted({*a, *b})) for a, b in pairs))
    return changed


def with_base(schedule: Schedule, base: int) -> Schedule:
    """The schedule with a larger level as the base."""
    evaluated = tuple(tuple(level for level in levels if level > base) for levels in schedule.evaluated)
    return schedule._replace(base=base, evaluated=evaluated)


def other_steps(searcher: Searcher, best: Found, level: int) -> Found:
    """With more or fewer steps of the base."""
    for factor in (_STEPS_FACTOR, 1 / _STEPS_FACTOR):
        while True:
            schedule = best.schedule
            count = round(len(schedule.evaluated) * factor)
            if not 2 <= count <= searcher.times:
                break
            changed = with_steps(schedule, count)
            if len(evaluation_steps(changed, level)) < len(evaluation_steps(schedule, level)):
                break
            found = searcher.try_out(changed)
            if found.merit >= best.merit - GAIN:
                break
            best = found
    return best


def middle_evaluations(searcher: Searcher, best: Found, finest: int) -> Found:
    """With evaluations of levels between the base and the finest, in the steps in which they reduce the error."""
    for level in range(best.schedule.base + 1, finest):
        for step in range(len(best.schedule.evaluated)):
            there = level in best.schedule.evaluated[step]
            less, more = (step, None) if there else (None, step)
            schedule = changed_evaluations(best.schedule, level, less, more)
            found = None if schedule is None else searcher.try_out(schedule, best)
            if found is not None and found.merit < best.merit - GAIN:
                best = found
    return best


def moved_times(searcher: Searcher, best: Found, level: int) -> Found:
    """Moves all times together, and then one time after another at which a level is evaluated."""
    for shift in _SHIFTS:
        best = _times_together(searcher, best, shift)
        best = _times_one_by_one(searcher, best, level, shift)
    return best


def _times_together(searcher: Searcher, best: Found, shift: float) -> Found:
    for sign in (1, -1):
        while True:
            first, *inside, last = best.schedule.places
            step = sign * max(1, round(shift * min(np.diff(best.schedule.places))))
            places = (first, *(place + step for place in inside), last)
            if min(np.diff(places)) < 1:
                break
            found = searcher.try_out(best.schedule._replace(places=places), best)
            if found.merit >= best.merit - GAIN:
                break
            best = found
    return best


def _times_one_by_one(searcher: Searcher, best: Found, level: int, shift: float) -> Found:
    for i in range(1, len(best.schedule.places) - 1):
        if level not in (best.schedule.base, *best.schedule.evaluated[i]):
            continue
        for sign in (1, -1):
            places = list(best.schedule.places)
            gap = abs(places[i + sign] - places[i])
            if gap < 2:
                continue
            places[i] += sign * max(1, round(shift * gap))
            changed = best.schedule._replace(places=tuple(places))
            found = searcher.try_out(changed, best)
            if found.merit < best.merit - GAIN:
                best = found
                break
    return best


def without_repeats(searcher: Searcher, best: Found) -> Found:
    """Without the second evaluation of the base after a correction, if this is better."""
    found = searcher.try_out(best.schedule._replace(repeats=False))
    return found if found.merit < best.merit - GAIN else best
