"""The search for the times of the steps and for the levels that are evaluated in each of them, on pilots.

Each candidate is judged by a roll-out of the pilots with cross-validated coefficients. The search is greedy: one number
is changed at a time, and a change is kept if it reduces the typical error of the pilots. A roll-out starts at the first
step that differs from a known one.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .fit_pilots import FitPilots
from .fit_rollout import Memory, roll_out, Rollout, Schedule
from .fit_step import Groups
from .kept_parts import KeptParts
from .step_grids import first_densities, grid_of, resampled

# A change is kept if it reduces the logarithm of the typical error by at least this much. A smaller gain is within the
# noise of the pilots.
_GAIN = 0.004
# Errors at different costs are compared as if errors were proportional to cost**-2.5, about the exponent of fitted
# steps.
_EXCHANGE = 2.5
# The density of steps is the exponential of a piecewise linear function with five knots, whose values are changed by
# these amounts.
_KNOTS, _MOVES = 5, (0.6, 0.3)
# A time is moved by these fractions of the distance to its neighbour, in grids of at most ten steps. For larger numbers
# of steps the grid of the next smaller number is resampled.
_SHIFTS, _MOST_MOVED = (0.4, 0.2), 10
# The number of steps for which the density is searched first.
_FIRST_STEPS = 6
# An evaluation of a higher level is moved by these numbers of steps.
_DISTANCES = (3, 1)
# Steps of the base to begin with, additional ones per evaluation of the finest level, and the factor of a change.
_STEPS_AT_FIRST, _STEPS_PER_EVALUATION, _STEPS_FACTOR = 8, 4, 1.3


class Found(NamedTuple):
    """A schedule, the typical error of its roll-out and its cost. `rollouts` contains the roll-out, unless the error is
    known from an interrupted search and the roll-out was not needed yet."""

    schedule: Schedule
    typical_error: float
    cost: float
    rollouts: list[Rollout]

    @property
    def merit(self) -> float:
        """The logarithm of the typical error, corrected to equal cost; smaller is better."""
        return float(np.log(self.typical_error)) + _EXCHANGE * float(np.log(self.cost))


class Searcher:
    """Rolls out pilots, starting from known roll-outs of similar schedules. The errors of all roll-outs are kept: after
    an interruption the search repeats its decisions without them."""

    def __init__(self, pilots: FitPilots, memory: Memory, groups: Groups, kept: KeptParts | None = None):
        self.pilots, self.memory, self.groups = pilots, memory, groups
        self.kept = KeptParts() if kept is None else kept
        self.times = len(pilots.ts) - 1

    def try_out(self, schedule: Schedule, like: Found | None = None) -> Found:
        """The roll-out of a schedule, from the first step that differs from a known one."""
        rollouts: list[Rollout] = []

        def error() -> float:
            if like is not None and not like.rollouts:
                like.rollouts.append(self._roll_out(like.schedule, None))
            rollouts.append(self._roll_out(schedule, None if like is None else like.rollouts[0]))
            return rollouts[0].typical_error

        typical = self.kept.number(str(tuple(schedule)), error)
        return Found(schedule, typical, schedule.cost(self.pilots.costs), rollouts)

    def _roll_out(self, schedule: Schedule, known: Rollout | None) -> Rollout:
        return roll_out(self.pilots, schedule, self.memory, self.groups, known=known)


def single_level(searcher: Searcher, level: int, counts: Sequence[int]) -> Iterator[Found]:
    """The best steps found for one level alone, for each of the numbers of steps."""
    first = min(_FIRST_STEPS, searcher.times)

    def alone(places: tuple[int, ...]) -> Schedule:
        return Schedule(places, level, ((),) * (len(places) - 1))

    def shaped(density: np.ndarray) -> Schedule:
        return alone(grid_of(density, first, searcher.times))

    best, density = _density(searcher, shaped)
    refined = _moved_times(searcher, best, level) if first in counts else best
    for order in (sorted(c for c in counts if c <= first)[::-1], sorted(c for c in counts if c > first)):
        last = refined
        for count in order:
            if count == first:
                yield last
                continue
            starts = [resampled(last.schedule.places, count), grid_of(density, count, searcher.times)]
            tried = [searcher.try_out(alone(places)) for places in starts]
            last = min(tried, key=lambda found: found.merit)
            if count <= _MOST_MOVED:
                last = _moved_times(searcher, last, level)
            yield last


def _density(
    searcher: Searcher, shaped: Callable[[np.ndarray], Schedule]
) -> tuple[Found, Float[np.ndarray, " knots"]]:
    """The best schedule of a family in which the density of steps is varied."""
    starts = first_densities(searcher.pilots.ts, _KNOTS)
    tried = [searcher.try_out(shaped(density)) for density in starts]
    best = min(tried, key=lambda found: found.merit)
    density = next(d for d, found in zip(starts, tried, strict=True) if found is best)
    for size in _MOVES:
        for knot in range(_KNOTS):
            for sign in (1, -1):
                changed = density.copy()
                changed[knot] += sign * size
                found = searcher.try_out(shaped(changed), best)
                if found.merit < best.merit - _GAIN:
                    best, density = found, changed
                    break
    return best, density


def _moved_times(searcher: Searcher, best: Found, level: int) -> Found:
    """Moves one time after another at which a level is evaluated, by a part of the distance to its neighbour."""
    for shift in _SHIFTS:
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
                if found.merit < best.merit - _GAIN:
                    best = found
                    break
    return best


def multilevel(
    searcher: Searcher, finest: int, most_evaluations: int, alone: Sequence[Schedule]
) -> Iterator[Found]:
    """The best schedule for each number of evaluations of the finest level; `alone` are schedules of that level."""

    def fresh(base: int, density: np.ndarray, number: int) -> Schedule:
        steps = min(_STEPS_AT_FIRST + number * _STEPS_PER_EVALUATION, searcher.times)
        places = grid_of(density, steps, searcher.times)
        wanted = [places[int((i + 0.5) / number * steps)] for i in range(number)]
        return _with_evaluations(places, base, finest, wanted)

    def filled(base: int, density: np.ndarray, single: Schedule) -> Schedule:
        """The finest level at its times in `single`, except for the first, and steps of the base between them."""
        wanted = single.places[1:-1]
        steps = min(_STEPS_AT_FIRST + len(wanted) * _STEPS_PER_EVALUATION, searcher.times)
        others = grid_of(density, steps, searcher.times)
        between = [p for p in others[1:-1] if min(abs(p - q) for q in wanted) > 1]
        return _with_evaluations(tuple(sorted({0, others[-1], *wanted, *between})), base, finest, wanted)

    densities = first_densities(searcher.pilots.ts, _KNOTS)
    tried = [searcher.try_out(fresh(base, density, 2)) for base in range(finest) for density in densities]
    base = min(tried, key=lambda found: found.merit).schedule.base
    _, density = _density(searcher, lambda density: fresh(base, density, 2))
    best = None
    for number in range(1, most_evaluations + 1):
        # The search starts from a new schedule, from one that evaluates the finest level where it is evaluated alone,
        # and from the last one with one more evaluation. Each may end in a local minimum.
        like = [single for single in alone if len(single.evaluated) == number + 1]
        kinds = [[fresh(base, density, number) for base in range(finest)]]
        kinds += [[filled(base, density, single) for base in range(finest)] for single in like]
        starts = [min(map(searcher.try_out, kind), key=lambda found: found.merit) for kind in kinds]
        if best is not None:
            starts.append(_one_evaluation_more(searcher, best, finest))
        best = min(
            (_moved_evaluations(searcher, start, finest) for start in starts), key=lambda found: found.merit
        )
        best = _other_steps(searcher, best, finest)
        best = _middle_evaluations(searcher, best, finest)
        best = _moved_evaluations(searcher, best, finest)
        best = _moved_times(searcher, best, finest)
        yield best


def _with_evaluations(
    places: tuple[int, ...], base: int, level: int, wanted: Sequence[float | int] | np.ndarray
) -> Schedule:
    """A schedule that evaluates a level in the steps whose starts are nearest to some times."""
    starts = np.asarray(places[:-1])
    steps = {int(np.argmin(np.abs(starts - time))) for time in wanted}
    return Schedule(places, base, tuple((level,) if n in steps else () for n in range(len(starts))))


def _evaluation_steps(schedule: Schedule, level: int) -> list[int]:
    """The steps in which a level is evaluated."""
    return [n for n, levels in enumerate(schedule.evaluated) if level in levels]


def _changed_evaluations(
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


def _one_evaluation_more(searcher: Searcher, best: Found, level: int) -> Found:
    """With one more evaluation, in the middle of the gap between two evaluations in which the error is smallest."""
    steps = _evaluation_steps(best.schedule, level)
    edges = [0, *steps, len(best.schedule.evaluated)]
    middles = sorted({(a + b) // 2 for a, b in zip(edges, edges[1:], strict=False)})
    changed = [_changed_evaluations(best.schedule, level, None, middle) for middle in middles]
    tried = [searcher.try_out(schedule, best) for schedule in changed if schedule is not None]
    return min(tried, key=lambda found: found.typical_error) if tried else best


def _moved_evaluations(searcher: Searcher, best: Found, level: int) -> Found:
    """Moves the evaluations of a level to nearby steps, one after the other."""
    for distance in _DISTANCES:
        for i in range(len(_evaluation_steps(best.schedule, level))):
            for sign in (1, -1):
                while True:
                    step = _evaluation_steps(best.schedule, level)[i]
                    schedule = _changed_evaluations(best.schedule, level, step, step + sign * distance)
                    found = None if schedule is None else searcher.try_out(schedule, best)
                    if found is None or found.merit >= best.merit - _GAIN:
                        break
                    best = found
    return best


def _other_steps(searcher: Searcher, best: Found, level: int) -> Found:
    """With more or fewer steps of the base, and the other evaluations at about the same times."""
    for factor in (_STEPS_FACTOR, 1 / _STEPS_FACTOR):
        while True:
            schedule = best.schedule
            count = round(len(schedule.evaluated) * factor)
            if not 2 <= count <= searcher.times:
                break
            places = resampled(schedule.places, count)
            changed = Schedule(places, schedule.base, ((),) * count, schedule.repeats)
            for kind in schedule.above:
                wanted = [schedule.places[n] for n in _evaluation_steps(schedule, kind)]
                extra = _with_evaluations(places, schedule.base, kind, wanted)
                pairs = zip(changed.evaluated, extra.evaluated, strict=True)
                changed = changed._replace(evaluated=tuple(tuple(sorted({*a, *b})) for a, b in pairs))
            if len(_evaluation_steps(changed, level)) < len(_evaluation_steps(schedule, level)):
                break
            found = searcher.try_out(changed)
            if found.merit >= best.merit - _GAIN:
                break
            best = found
    return best


def _middle_evaluations(searcher: Searcher, best: Found, finest: int) -> Found:
    """With evaluations of levels between the base and the finest, in the steps in which they reduce the error."""
    for level in range(best.schedule.base + 1, finest):
        for step in range(len(best.schedule.evaluated)):
            there = level in best.schedule.evaluated[step]
            less, more = (step, None) if there else (None, step)
            schedule = _changed_evaluations(best.schedule, level, less, more)
            found = None if schedule is None else searcher.try_out(schedule, best)
            if found is not None and found.merit < best.merit - _GAIN:
                best = found
    return best
