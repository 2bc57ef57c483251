"""The search of schedules for fitted steps: the finest level alone, cheaper levels alone, and several levels."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from .envelope import cost_to_reach, envelope
from .fit_pilots import FitPilots
from .fit_rollout import Memory, Schedule
from .fit_step import left_out
from .kept_parts import KeptParts
from .search_changes import evaluation_steps, with_base, with_steps
from .search_steps import multilevel, single_level
from .searcher import Found, Searcher

# How many drifts and increments a step may use in the search.
MEMORY = Memory()
# The search uses this number of pilots. The steps that it finds are then fitted on all pilots.
SEARCHED = 40
# Groups of pilots in the cross-validation; each is held out once.
GROUPS = 4
# Numbers of steps of the finest level alone, up to the wanted cost.
SINGLE = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 25, 32)
# Schedules of several levels are searched for up to this number of evaluations of the highest of them.
_MOST_EVALUATIONS = 10
# This search ends after this number of consecutive schedules that need at least this fraction of the cost of the finest
# level alone, or do not reduce the error.
_USELESS, _NO_GAIN = 2, 0.9
# Numbers of steps of cheaper levels alone.
_CHEAP = (8, 16)
# A schedule is beaten by one that is as cheap and has less than this fraction of its error. Closer errors are within
# the noise of the pilots. If distributions count, errors may be up to 1.25 times as large.
BEATEN, _FAR_BEATEN = 0.95, 0.8
# For the distribution the number of steps of the base is increased by this factor too, if there are at most so many.
_MORE_STEPS, _MOST_INCREASED = 1.5, 16
# Schedules with more evaluations of their highest level have no variants for the distribution: on the shipped ladder
# the distribution of 10,000 images is converged with four, and these fits would take a fifth of the time of all fits.
_MOST_VARIED = 5
# More evaluations must reduce the error to this fraction. Closer errors are within the noise of the pilots.
_LESS = 0.95


def search_schedules(
    pilots: FitPilots, most: float, kept: KeptParts, report: Callable[[int, str], None]
) -> Iterator[Found]:
    """Schedules of all costs: the finest level alone, cheaper ones alone, and several levels."""
    few = pilots.part(min(SEARCHED, pilots.count))
    searcher = Searcher(few, MEMORY, left_out(few.count, GROUPS), kept)
    finest = len(pilots.costs) - 1
    counts = _counts(SINGLE, 1.0, most, searcher.times)
    alone = []
    for found in single_level(searcher, finest, counts):
        report(1, f"finest level alone, {len(found.schedule.evaluated)} steps")
        alone.append(found)
        yield found
    for level in range(finest):
        counts = _counts(_CHEAP, float(pilots.costs[level]), most, searcher.times)
        for found in single_level(searcher, level, counts):
            report(1, f"level {level + 1} alone, {len(found.schedule.evaluated)} steps")
            yield found
    for top in range(1, finest + 1):
        yield from _several(searcher, top, most, alone, report)


def _several(
    searcher: Searcher, top: int, most: float, alone: Sequence[Found], report: Callable[[int, str], None]
) -> Iterator[Found]:
    """Schedules of several levels up to `top`, for more and more evaluations of it as long as they are useful; `alone`
    are those of the finest level alone."""
    cost, error = envelope(
        np.array([one.cost for one in alone]), np.array([one.typical_error for one in alone])
    )
    number = _most_evaluations(searcher.pilots.costs, top, most)
    useless, least = 0, np.inf
    for found in multilevel(searcher, top, number, [one.schedule for one in alone]):
        best = found[0]
        report(1, f"several levels, cost {best.cost:.2g}")
        # Without their roll-outs, which take memory.
        yield from (one._replace(rollouts=[]) for one in found)
        gain = cost_to_reach(cost, error, best.typical_error) / best.cost
        is_useful = gain > 1 / _NO_GAIN and best.typical_error < _LESS * least
        useless, least = 0 if is_useful else useless + 1, min(least, best.typical_error)
        # The gain decreases with the number of evaluations.
        if useless == _USELESS:
            return


def worth_fitting(
    found: list[Found], costs: Float[np.ndarray, " levels"], times: int, *, distribution: bool
) -> list[Schedule]:
    """The schedules that no cheaper one beats, and all of the finest level alone, with which they are compared. A
    schedule that was found several times is contained once.

    If distributions count, also schedules with a somewhat larger error, and each with few evaluations of its highest
    level with more steps of the base and with the next level as the base: the order of distances may be another than
    that of errors."""
    share = _FAR_BEATEN if distribution else BEATEN
    finest = len(costs) - 1

    def beaten(one: Found) -> bool:
        return any(
            other.cost <= one.cost and other.typical_error < share * one.typical_error for other in found
        )

    schedules = [one.schedule for one in found if one.schedule.levels == (finest,) or not beaten(one)]
    for schedule in schedules[:] if distribution else ():
        steps, top = len(schedule.evaluated), schedule.levels[-1]
        if len(schedule.levels) > 1 and len(evaluation_steps(schedule, top)) <= _MOST_VARIED:
            if steps <= _MOST_INCREASED:
                schedules.append(with_steps(schedule, min(round(_MORE_STEPS * steps), times)))
            if schedule.base + 1 < schedule.levels[-1]:
                schedules.append(with_base(schedule, schedule.base + 1))
    return list(dict.fromkeys(schedules))


def units_of_search(costs: Float[np.ndarray, " levels"], most: float, times: int) -> int:
    """The largest number of progress reports: one for each number of steps or evaluations that is searched."""
    single = len(_counts(SINGLE, 1.0, most, times))
    several = sum(_most_evaluations(costs, top, most) for top in range(1, len(costs)))
    cheap = sum(len(_counts(_CHEAP, float(cost), most, times)) for cost in costs[:-1])
    return single + cheap + several


def _most_evaluations(costs: Float[np.ndarray, " levels"], top: int, most: float) -> int:
    """The number of evaluations of the highest level up to which schedules are searched. Those of a smaller level than
    the finest are not worth more than one evaluation of the finest."""
    worth = most if top == len(costs) - 1 else 1.0
    return min(_MOST_EVALUATIONS, int(worth / costs[top]))


def _counts(wanted: Sequence[int], cost: float, most: float, times: int) -> list[int]:
    """The numbers of steps of a level whose cost is at most `most`."""
    return [n for n in wanted if n <= min(most / cost, times)]
