"""Trials of schedules: roll-outs of the pilots that start from roll-outs of similar schedules."""

from typing import NamedTuple

import numpy as np

from .fit_pilots import FitPilots
from .fit_rollout import Memory, roll_out, Rollout, Schedule
from .fit_step import Groups
from .kept_parts import KeptParts

# Errors at different costs are compared as if errors were proportional to cost**-2.5, about the exponent of fitted
# steps.
_EXCHANGE = 2.5


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
