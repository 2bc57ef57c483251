"""The search for the times of the steps and for the levels that are evaluated in each of them, on pilots.

Each candidate is judged by a roll-out of the pilots with cross-validated coefficients. The search is greedy: one number
is changed at a time, and a change is kept if it reduces the typical error of the pilots. A roll-out starts at the first
step that differs from a known one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .fit_rollout import Schedule
from .search_changes import (
    changed_evaluations,
    evaluation_steps,
    GAIN,
    middle_evaluations,
    moved_evaluations,
    moved_times,
    one_evaluation_more,
    other_steps,
    with_evaluations,
    without_repeats,
)
from .searcher import Found, Searcher
from .step_grids import first_densities, grid_of, resampled

# The density of steps is the exponential of a piecewise linear function with five knots, whose values are changed by
# these amounts.
_KNOTS, _MOVES = 5, (0.6, 0.3)
# Times are moved in grids of at most ten steps. For larger numbers of steps the grid of the next smaller number is
# resampled.
_MOST_MOVED = 10
# The number of steps for which the density is searched first.
_FIRST_STEPS = 6
# Steps of the base to begin with, and additional ones per evaluation of the top level, unless the base costs more in
# these steps than the top level.
_STEPS_AT_FIRST, _STEPS_PER_EVALUATION = 8, 4
# Schedules of the top level alone with at most so many steps are thinned to about half of their evaluations.
_MOST_THINNED = 12
# Their base costs at most this much, in evaluations of the top level; the cheapest level is always tried.
_CHEAP_BASE = 0.1
# The number of evaluations whose removal is tried after the first one.
_CONSIDERED = 4


class _Effort(NamedTuple):
    """For schedules with a number of evaluations of the top level: from how many thinned schedules the search starts,
    beside some others; how many of all starts are changed; and how many of these in the ways that need more
    roll-outs."""

    thinned: int
    changed: int
    refined: int


# By the largest number of evaluations. Several levels gain most with few of them, where roll-outs are cheap too, and
# little with many.
_EFFORTS = {3: _Effort(4, 4, 4), 6: _Effort(2, 3, 2)}
_LEAST_EFFORT = _Effort(2, 3, 1)


def single_level(searcher: Searcher, level: int, counts: Sequence[int]) -> Iterator[Found]:
    """The best steps found for one level alone, for each of the numbers of steps."""
    first = min(_FIRST_STEPS, searcher.times)

    def alone(places: tuple[int, ...]) -> Schedule:
        return Schedule(places, level, ((),) * (len(places) - 1))

    def shaped(density: np.ndarray) -> Schedule:
        return alone(grid_of(density, first, searcher.times))

    best, density = _density(searcher, shaped)
    refined = moved_times(searcher, best, level) if first in counts else best
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
                last = moved_times(searcher, last, level)
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
                if found.merit < best.merit - GAIN:
                    best, density = found, changed
                    break
    return best, density


def multilevel(
    searcher: Searcher, top: int, most_evaluations: int, alone: Sequence[Schedule]
) -> Iterator[list[Found]]:
    """The best schedules found for each number of evaluations of the top level, the level with the largest number that
    is evaluated; `alone` are schedules of a single level, whose times it takes."""
    costs = searcher.pilots.costs / searcher.pilots.costs[top]

    def fresh(base: int, density: np.ndarray, number: int) -> Schedule:
        steps = min(_STEPS_AT_FIRST + number * _STEPS_PER_EVALUATION, round(number / costs[base]))
        steps = min(max(steps, number + 1), searcher.times)
        places = grid_of(density, steps, searcher.times)
        wanted = [places[int((i + 0.5) / number * steps)] for i in range(number)]
        return with_evaluations(places, base, top, wanted)

    def filled(base: int, density: np.ndarray, single: Schedule) -> Schedule:
        """The top level at its times in `single`, except for the first, and steps of the base between them."""
        wanted = single.places[1:-1]
        others = fresh(base, density, len(wanted)).places
        between = [p for p in others[1:-1] if min(abs(p - q) for q in wanted) > 1]
        return with_evaluations(tuple(sorted({0, others[-1], *wanted, *between})), base, top, wanted)

    densities = first_densities(searcher.pilots.ts, _KNOTS)
    tried = [searcher.try_out(fresh(base, density, 2)) for base in range(top) for density in densities]
    base = _by_merit(tried)[0].schedule.base
    _, density = _density(searcher, lambda density: fresh(base, density, 2))
    thin = _thinned_schedules(searcher, top, most_evaluations, alone)
    best = None
    for number in range(1, most_evaluations + 1):
        effort = next((one for most, one in _EFFORTS.items() if number <= most), _LEAST_EFFORT)
        # The search starts from thinned schedules of the top level alone, from a new schedule, from one that evaluates
        # the top level where it is evaluated alone, and from the last one with one more evaluation. Each may end in a
        # local minimum.
        like = [single for single in alone if len(single.evaluated) == number + 1]
        kinds = [[fresh(base, density, number) for base in range(top)]]
        kinds += [[filled(base, density, single) for base in range(top)] for single in like]
        starts = [_by_merit(map(searcher.try_out, kind))[0] for kind in kinds]
        starts += _by_merit(thin.get(number, []))[: effort.thinned]
        if best is not None:
            starts.append(one_evaluation_more(searcher, best, top))
        moved = _by_merit(
            _evaluations_changed(searcher, start, top) for start in _by_merit(starts)[: effort.changed]
        )
        refined = [_all_changed(searcher, one, top) for one in moved[: effort.refined]]
        found = _by_merit([*refined, *moved[effort.refined :]])
        best = found[0]
        yield found


def _by_merit(found: Iterable[Found]) -> list[Found]:
    """The best first; of equal schedules only one."""
    return sorted({one.schedule: one for one in found}.values(), key=lambda one: one.merit)


def _thinned_schedules(
    searcher: Searcher, top: int, most_evaluations: int, alone: Sequence[Schedule]
) -> dict[int, list[Found]]:
    """Thinned schedules of the top level alone, by their number of evaluations of it."""
    costs = searcher.pilots.costs / searcher.pilots.costs[top]
    found: dict[int, list[Found]] = {}
    for single in alone:
        steps = len(single.evaluated)
        if steps > _MOST_THINNED:
            continue
        fewest = max(1, steps // 2 - 1)
        for base in range(top):
            if fewest > most_evaluations or (base and costs[base] > _CHEAP_BASE):
                continue
            for number, one in enumerate(thinned(searcher, single._replace(base=top), base, fewest), 1):
                # Without its roll-out, which takes memory.
                found.setdefault(steps - number, []).append(one._replace(rollouts=[]))
    return found


def thinned(searcher: Searcher, single: Schedule, base: int, fewest: int) -> Iterator[Found]:
    """A single level's schedule with a base level below it, from which the single level's evaluations are removed one
    by one, until `fewest` are left. Each time the one is removed without which the error is smallest. After the first
    time only a few are tried, those whose removal increased the error least when it was last tried."""
    level, steps = single.base, len(single.evaluated)
    found = searcher.try_out(Schedule(single.places, base, ((level,),) * steps))
    left = evaluation_steps(found.schedule, level)
    considered = len(left)
    for _ in range(steps - fewest):
        tried = {}
        for n in left[:considered]:
            fewer = changed_evaluations(found.schedule, level, n, None)
            if fewer is not None:
                tried[n] = searcher.try_out(fewer, found)
        best, *others = sorted(tried, key=lambda n: tried[n].typical_error)
        left, considered = [*others, *left[considered:]], _CONSIDERED
        found = tried[best]
        yield found


def _evaluations_changed(searcher: Searcher, found: Found, top: int) -> Found:
    """After changes of the steps in which the top level is evaluated, and of the number of steps."""
    return other_steps(searcher, moved_evaluations(searcher, found, top), top)


def _all_changed(searcher: Searcher, found: Found, top: int) -> Found:
    """After changes of all other kinds too, which need more roll-outs."""
    found = middle_evaluations(searcher, found, top)
    found = moved_evaluations(searcher, found, top)
    found = moved_times(searcher, found, top)
    return without_repeats(searcher, found)
