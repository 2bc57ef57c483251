"""The search for steps: their times, the level evaluated in each, and the looks at higher levels, on pilots.

Every choice is judged by a roll-out of the pilots with coefficients fitted in closed loop and held out. The search is
greedy: one number is changed at a time, and a change stays if it lowers the pilots' typical error. A roll-out starts
at the first step that a change touches.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .fit_pilots import FitPilots
from .fit_rollout import Memory, roll_out, Rollout, Schedule
from .fit_step import Groups

# A change has to lower the logarithm of the typical error by this much: less may be the pilots' luck.
_GAIN = 0.004
# What a cost is worth where a change alters it too: fitted steps err about as this power of one over their cost.
_EXCHANGE = 2.5
# Logarithms of the density of steps at equally spaced fractions of the pilots' times, and by how much they are moved.
_KNOTS, _MOVES = 5, (0.6, 0.3)
# By which fraction of the distance to its neighbour a time is moved, and up to how many steps that is worth its while:
# beyond, the times of fewer steps are resampled.
_SHIFTS, _MOST_MOVED = (0.4, 0.2), 10
# Steps for which the first density is searched.
_FIRST_STEPS = 6
# Steps of the base at first, and more for each look; and the factor by which their number is changed.
_STEPS_AT_FIRST, _STEPS_PER_LOOK, _STEPS_FACTOR = 8, 4, 1.3


class Found(NamedTuple):
    """A schedule and what its roll-out gave."""

    schedule: Schedule
    rollout: Rollout
    cost: float

    @property
    def merit(self) -> float:
        """Small is good: the logarithm of the typical error, at equal cost."""
        return float(np.log(self.rollout.typical_error)) + _EXCHANGE * float(np.log(self.cost))


class Searcher:
    """Rolls pilots out for schedules that are like the last ones."""

    def __init__(self, pilots: FitPilots, memory: Memory, groups: Groups):
        self.pilots, self.memory, self.groups = pilots, memory, groups
        self.times = len(pilots.ts) - 1

    def try_out(self, schedule: Schedule, like: Found | None = None) -> Found:
        """The schedule's roll-out, started where it departs from a known one."""
        known = None if like is None else like.rollout
        rollout = roll_out(self.pilots, schedule, self.memory, self.groups, known=known)
        return Found(schedule, rollout, schedule.cost(self.pilots.costs))


def grid_of(density: Float[np.ndarray, " knots"], steps: int, times: int) -> tuple[int, ...]:
    """Indices of `steps + 1` of `times + 1` times, whose number per index is proportional to the exponential of a
    piecewise linear function."""
    fractions = np.linspace(0, 1, 20 * times + 1)
    weights = np.exp(np.interp(fractions, np.linspace(0, 1, len(density)), density))
    cumulative = np.append(0.0, np.cumsum(0.5 * (weights[1:] + weights[:-1])))
    wanted = np.linspace(0, cumulative[-1], steps + 1)
    return _distinct(np.interp(wanted, cumulative, fractions) * times, times)


def resampled(places: Sequence[int], steps: int) -> tuple[int, ...]:
    """A grid of another number of steps whose times are as dense where."""
    old = np.linspace(0, 1, len(places))
    return _distinct(np.interp(np.linspace(0, 1, steps + 1), old, places), places[-1])


def _distinct(places: Float[np.ndarray, " n"], last: int) -> tuple[int, ...]:
    """The nearest integers that increase from 0 to `last`."""
    rounded = np.round(places).astype(int)
    rounded[0], rounded[-1] = 0, last
    for i in range(1, len(rounded)):
        rounded[i] = max(rounded[i], rounded[i - 1] + 1)
    rounded[-1] = last
    for i in reversed(range(len(rounded) - 1)):
        rounded[i] = min(rounded[i], rounded[i + 1] - 1)
    return tuple(int(i) for i in rounded)


def first_densities(searcher: Searcher) -> list[Float[np.ndarray, " knots"]]:
    """Densities to begin with: as dense as the pilots' times are, equal steps, and equal ratios of times."""
    ts = searcher.pilots.ts
    knots = np.linspace(0, searcher.times, _KNOTS)
    found = [np.zeros(_KNOTS)]
    variables = [ts] if np.any(ts == 0) or ts[0] * ts[-1] < 0 else [ts, np.log(np.abs(ts))]
    for variable in variables:
        slope = np.abs(np.gradient(variable))
        found.append(np.log(np.interp(knots, np.arange(len(ts)), slope)))
    return found


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
    starts = first_densities(searcher)
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
            if level not in (best.schedule.base, *best.schedule.looks[i]):
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


def multilevel(searcher: Searcher, finest: int, most_looks: int) -> Iterator[Found]:
    """The best steps found with each number of looks at the finest level."""

    def fresh(base: int, density: np.ndarray, looks: int) -> Schedule:
        steps = min(_STEPS_AT_FIRST + looks * _STEPS_PER_LOOK, searcher.times)
        places = grid_of(density, steps, searcher.times)
        wanted = [places[int((i + 0.5) / looks * steps)] for i in range(looks)]
        return _with_looks(places, base, finest, wanted)

    densities = first_densities(searcher)
    tried = [searcher.try_out(fresh(base, density, 2)) for base in range(finest) for density in densities]
    base = min(tried, key=lambda found: found.merit).schedule.base
    _, density = _density(searcher, lambda density: fresh(base, density, 2))
    best = None
    for looks in range(1, most_looks + 1):
        # Afresh, and the last one with a further look: either may end in a poor place.
        starts = [searcher.try_out(fresh(base, density, looks)) for base in range(finest)]
        starts = [min(starts, key=lambda found: found.merit)]
        if best is not None:
            starts.append(_one_look_more(searcher, best, finest))
        best = min((_moved_looks(searcher, start, finest) for start in starts), key=lambda found: found.merit)
        best = _other_steps(searcher, best, finest)
        best = _middle_looks(searcher, best, finest)
        best = _moved_looks(searcher, best, finest)
        best = _moved_times(searcher, best, finest)
        yield best


def _with_looks(
    places: tuple[int, ...], base: int, level: int, wanted: Sequence[float | int] | np.ndarray
) -> Schedule:
    """A schedule whose looks are in the steps that begin nearest to some times."""
    starts = np.asarray(places[:-1])
    steps = {int(np.argmin(np.abs(starts - time))) for time in wanted}
    return Schedule(places, base, tuple((level,) if n in steps else () for n in range(len(starts))))


def _look_steps(schedule: Schedule, level: int) -> list[int]:
    return [n for n, looked in enumerate(schedule.looks) if level in looked]


def _changed_looks(schedule: Schedule, level: int, less: int | None, more: int | None) -> Schedule | None:
    """With one look of a level less in one step and one more in another; `None` if it is there already."""
    looks = [set(looked) for looked in schedule.looks]
    if more is not None:
        if not 0 <= more < len(looks) or level in looks[more]:
            return None
        looks[more].add(level)
    if less is not None:
        looks[less].discard(level)
    return schedule._replace(looks=tuple(tuple(sorted(looked)) for looked in looks))


def _one_look_more(searcher: Searcher, best: Found, level: int) -> Found:
    """With a further look, in the middle of that gap between looks where it helps most."""
    steps = _look_steps(best.schedule, level)
    edges = [0, *steps, len(best.schedule.looks)]
    middles = sorted({(a + b) // 2 for a, b in zip(edges, edges[1:], strict=False)})
    changed = [_changed_looks(best.schedule, level, None, middle) for middle in middles]
    tried = [searcher.try_out(schedule, best) for schedule in changed if schedule is not None]
    return min(tried, key=lambda found: found.rollout.typical_error) if tried else best


def _moved_looks(searcher: Searcher, best: Found, level: int) -> Found:
    """Moves one look after another to a step nearby."""
    for distance in (3, 1):
        for i in range(len(_look_steps(best.schedule, level))):
            for sign in (1, -1):
                while True:
                    step = _look_steps(best.schedule, level)[i]
                    schedule = _changed_looks(best.schedule, level, step, step + sign * distance)
                    found = None if schedule is None else searcher.try_out(schedule, best)
                    if found is None or found.merit >= best.merit - _GAIN:
                        break
                    best = found
    return best


def _other_steps(searcher: Searcher, best: Found, level: int) -> Found:
    """With more or fewer steps of the base, the looks at about the same times."""
    for factor in (_STEPS_FACTOR, 1 / _STEPS_FACTOR):
        while True:
            schedule = best.schedule
            count = round(len(schedule.looks) * factor)
            if not 2 <= count <= searcher.times:
                break
            places = resampled(schedule.places, count)
            changed = Schedule(places, schedule.base, ((),) * count, schedule.repeats)
            for kind in schedule.above:
                wanted = [schedule.places[n] for n in _look_steps(schedule, kind)]
                extra = _with_looks(places, schedule.base, kind, wanted)
                looks = [tuple(sorted({*a, *b})) for a, b in zip(changed.looks, extra.looks, strict=True)]
                changed = changed._replace(looks=tuple(looks))
            if len(_look_steps(changed, level)) < len(_look_steps(schedule, level)):
                break
            found = searcher.try_out(changed)
            if found.merit >= best.merit - _GAIN:
                break
            best = found
    return best


def _middle_looks(searcher: Searcher, best: Found, finest: int) -> Found:
    """With looks at levels between the base and the finest in those steps where they pay."""
    for level in range(best.schedule.base + 1, finest):
        for step in range(len(best.schedule.looks)):
            there = level in best.schedule.looks[step]
            less, more = (step, None) if there else (None, step)
            schedule = _changed_looks(best.schedule, level, less, more)
            found = None if schedule is None else searcher.try_out(schedule, best)
            if found is not None and found.merit < best.merit - _GAIN:
                best = found
    return best
