"""Fits in closed loop: the coefficients of a step are fitted on pilots that have been rolled out with the fitted
coefficients of the earlier steps."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .._solver import adams_bashforth_weights, MultistepCoefficients
from .fit_law import fit_features, Law
from .fit_pilots import FitPilots
from .fit_step import Groups, kept
from .fit_subsets import classical_subset, move_subsets, step_subsets


class Schedule(NamedTuple):
    """The steps of a solve and the levels that are evaluated in each of them.

    - `places`: indices of the steps' times among the pilots' times, `N + 1` of them.
    - `base`: the level that is evaluated in every step.
    - `evaluated`: for each step, the higher levels that are evaluated at its start, in increasing order.
    - `repeats`: whether the base is evaluated again after a correction has moved the state.
    """

    places: tuple[int, ...]
    base: int
    evaluated: tuple[tuple[int, ...], ...]
    repeats: bool = True

    @property
    def above(self) -> tuple[int, ...]:
        """All higher levels that are evaluated in some step."""
        return tuple(sorted({level for levels in self.evaluated for level in levels}))

    @property
    def levels(self) -> tuple[int, ...]:
        """All levels that are evaluated, the base first."""
        return (self.base, *self.above)

    def cost(self, costs: Float[np.ndarray, " levels"]) -> float:
        """The cost of a solve. In the first step the state is exact and is not moved."""
        again = sum(bool(levels) for levels in self.evaluated[1:]) if self.repeats else 0
        higher = sum(float(costs[level]) for levels in self.evaluated for level in levels)
        return float(costs[self.base]) * (len(self.evaluated) + again) + higher


class Memory(NamedTuple):
    """The largest numbers of drifts of the base, and of increments of each higher level, that a step uses."""

    drifts: int = 4
    held: int = 3


class State(NamedTuple):
    """The pilots before a step: their states, the last drifts of the base, and the last increments of each higher
    level, newest first."""

    y: Float[np.ndarray, "pilots size"]
    drifts: tuple[np.ndarray, ...] = ()
    found: dict[int, tuple[np.ndarray, ...]] = {}  # noqa: RUF012 (never changed)


class Fitted(NamedTuple):
    """The fit of one step: the coefficients of the features, `(J, F)`, and those of the move of the state before it, or
    `None`."""

    coefficients: np.ndarray
    move: np.ndarray | None = None


class Rollout(NamedTuple):
    """A roll-out of all pilots: the states before each step and at the end, the fit of each step, and the RMS distance
    of each pilot's end state to its reference, `(P,)`."""

    schedule: Schedule
    memory: Memory
    groups: Groups
    states: tuple[State, ...]
    fitted: tuple[Fitted, ...]
    errors: Float[np.ndarray, " pilots"]

    @property
    def typical_error(self) -> float:
        """The geometric mean of the pilots' errors."""
        return typical(self.errors)


def typical(errors: Float[np.ndarray, " pilots"]) -> float:
    """The geometric mean of errors, which may be zero."""
    return float(np.exp(np.mean(np.log(errors + 1e-300))))


def roll_out(
    pilots: FitPilots,
    schedule: Schedule,
    memory: Memory,
    groups: Groups,
    *,
    known: Rollout | None = None,
    given: Sequence[Fitted] | None = None,
    classical: bool = False,
    law: Law | None = None,
) -> Rollout:
    """Rolls out the pilots and fits the coefficients of each step.

    **Arguments:**

    - `known`: an earlier roll-out with the same groups, whose first steps are reused as far as the schedules agree.
    - `given`: the coefficients of each step, which are then not fitted.
    - `classical`: use the classical coefficients, with two drifts.
    - `law`: also fit the distribution of the states.
    """
    done = 0 if known is None else _shared_steps(schedule, known.schedule)
    states = list(known.states[: done + 1]) if known is not None else [State(pilots.path[0])]
    fitted = list(known.fitted[:done]) if known is not None else []
    weights = adams_bashforth_weights(pilots.ts[list(schedule.places)], memory.drifts, pilots.time_variable)
    for n in range(done, len(schedule.evaluated)):
        known_step = None if given is None else given[n]
        state, step = _step(
            pilots, schedule, memory, groups, n, weights[n], states[-1], known_step, classical, law
        )
        states.append(state)
        fitted.append(step)
    apart = states[-1].y.astype(float) - pilots.path[schedule.places[-1]]
    errors = np.sqrt(np.mean(apart**2, axis=1))
    errors = np.nan_to_num(errors, nan=np.inf, posinf=np.inf)
    return Rollout(schedule, memory, groups, tuple(states), tuple(fitted), errors)


def _shared_steps(one: Schedule, other: Schedule) -> int:
    """The number of steps from the start that two schedules share."""
    if (one.base, one.repeats) != (other.base, other.repeats):
        return 0
    count = 0
    for n in range(min(len(one.evaluated), len(other.evaluated))):
        if one.places[n : n + 2] != other.places[n : n + 2] or one.evaluated[n] != other.evaluated[n]:
            break
        count += 1
    return count


def _step(
    pilots: FitPilots,
    schedule: Schedule,
    memory: Memory,
    groups: Groups,
    n: int,
    weights: Float[np.ndarray, " drifts"],
    state: State,
    given: Fitted | None,
    classical: bool,
    law: Law | None,
) -> tuple[State, Fitted]:
    place, stop, higher = schedule.places[n], schedule.places[n + 1], schedule.evaluated[n]
    y, found = state.y, dict(state.found)
    drift = np.asarray(pilots.drift(schedule.base, place, y))
    for level in higher:
        increment = np.asarray(pilots.drift(level, place, y)) - drift
        found[level] = (increment, *found.get(level, ())[: memory.held - 1])
    move = None
    if n and higher:
        parts = [found[level] for level in higher]
        features = [increment for part in parts for increment in part]
        if given is not None and given.move is not None:
            move = given.move
        else:
            chosen = move_subsets([len(part) for part in parts])
            same = kept(chosen[0]) if classical else None
            move = fit_features(features, y.astype(float), pilots.path[place], chosen, groups, same, law)
        y = moved(y, move, features, groups)
        if schedule.repeats:
            drift = np.asarray(pilots.drift(schedule.base, place, y))
    drifts = (drift, *state.drifts[: memory.drifts - 1])
    noise = pilots.others(place, stop, state.y)
    start = y.astype(float) if noise is None else y.astype(float) + np.asarray(noise)
    features = step_features(drifts, found)
    if given is not None:
        coefficients = given.coefficients
    else:
        # The times of the drifts, and the end of the step.
        times = pilots.ts[list(schedule.places[n + 1 - len(drifts) : n + 2])]
        counts = [len(found[level]) for level in sorted(found)]
        subsets = step_subsets(times, counts, weights, pilots.time_variable)
        same = kept(classical_subset(subsets, len(drifts))) if classical else None
        coefficients = fit_features(features, start, pilots.path[stop], subsets, groups, same, law)
    y = moved(y, coefficients, features, groups)
    if noise is not None:
        y = y + np.asarray(noise)
    return State(y, drifts, found), Fitted(coefficients, move)


def step_features(
    drifts: tuple[np.ndarray, ...], found: dict[int, tuple[np.ndarray, ...]]
) -> list[np.ndarray]:
    """The features whose linear combination is the change of state in a step: the newest drift, the differences of
    consecutive drifts, and the increments of each higher level."""
    differences = [new - old for new, old in zip(drifts, drifts[1:], strict=False)]
    return [drifts[0], *differences, *[increment for level in sorted(found) for increment in found[level]]]


def moved(
    y: Float[np.ndarray, "pilots size"],
    coefficients: Float[np.ndarray, "groups features"],
    features: Sequence[np.ndarray],
    groups: Groups,
) -> Float[np.ndarray, "pilots size"]:
    """The states plus the features times the coefficients of each pilot's group."""
    total = np.zeros(y.shape)
    for column, feature in enumerate(features):
        total += coefficients[groups.of, column][:, None] * feature
    return (y + total).astype(y.dtype)


def coefficients_of(rollout: Rollout, ts: Float[np.ndarray, " times"]) -> MultistepCoefficients:
    """The mean over groups of the fitted coefficients, as a table for the levels of the schedule."""
    schedule, memory = rollout.schedule, rollout.memory
    above = schedule.above
    steps = len(schedule.evaluated)
    drifts = np.zeros((steps, memory.drifts))
    increments = np.zeros((steps, len(above), memory.held))
    corrections = np.zeros((steps, len(above), memory.held))
    evaluated = np.array(
        [[level in levels for level in above] for levels in schedule.evaluated], bool
    ).reshape(steps, -1)
    repeats = np.zeros(steps, bool)
    for n, (state, fitted) in enumerate(zip(rollout.states[1:], rollout.fitted, strict=True)):
        known = len(state.drifts)
        row = np.mean(fitted.coefficients, axis=0)
        drifts[n, :known] = to_drifts(row[:known])
        start = known
        for level in sorted(state.found):
            count = len(state.found[level])
            increments[n, above.index(level), :count] = row[start : start + count]
            start += count
        if fitted.move is not None:
            # Where the state is not moved, the drift of the base is known.
            move, start = np.mean(fitted.move, axis=0), 0
            repeats[n] = schedule.repeats and bool(np.any(move))
            for level in schedule.evaluated[n]:
                count = len(state.found[level])
                corrections[n, above.index(level), :count] = move[start : start + count]
                start += count
    return MultistepCoefficients(
        ts=ts[list(schedule.places)],
        drifts=drifts,
        increments=increments,
        evaluated=evaluated,
        corrections=corrections,
        repeats=repeats,
    )


def to_drifts(row: Float[np.ndarray, " known"]) -> Float[np.ndarray, " known"]:
    """Converts coefficients of the newest drift and of differences to coefficients of drifts. With `b_0 = f_0` and
    `b_i = f_{i-1} - f_i`, the coefficient of `f_0` is `c_0 + c_1` and that of `f_i` is `c_{i+1} - c_i`."""
    later = np.append(row[1:], 0.0)
    earlier = row.copy()
    earlier[0] = -row[0]
    return later - earlier
