"""Coefficients of all steps together: a few Gauss-Newton steps on the logarithm of the pilots' errors at the end.

The fit in closed loop considers one step at a time: each step ends near the reference. Only the end of the solve
matters, though, and later steps may compensate for earlier ones. The gradient is that of the levels themselves, by one
sweep backwards. The matrix of second derivatives is that of a sketch (random directions at the end; Pilanci &
Wainwright 2016), through the derivative of a cheap level: it decides how fast the minimum is found and not where it is.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .fit_pilots import FitPilots
from .fit_rollout import Fitted, moved, roll_out, Rollout, step_features, to_drifts

# Steps at most, and those that lower the held-out error by less are the last.
_ROUNDS, _GAIN = 3, 0.01
# The ridge in units of the diagonal (Levenberg-Marquardt): at first, how many are tried, by which factor it is raised
# after a step that was too long, and by which it is lowered after one that was not.
_RIDGE, _TRIES, _RAISED, _LOWERED = 0.1, 3, 6.0, 3.0
# Random directions at the end.
_DIRECTIONS = 8
# A level stands in for a costlier one's derivative if its own costs at most this fraction.
_CHEAP = 0.1
# The geometric mean of errors has weights 1 / error**2: bounded, so that exact pilots do not decide alone.
_LEAST_SHARE = 0.5


class _Problem(NamedTuple):
    """Of each pilot, for the parameters of its group: gradient of half its squared error, `(P, F)`, and the matrix of
    Gauss and Newton, `(P, F, F)`."""

    gradient: Float[np.ndarray, "pilots parameters"]
    matrix: Float[np.ndarray, "pilots parameters parameters"]


def refine(pilots: FitPilots, rollout: Rollout, report: Callable[[str], None]) -> Rollout:
    """The roll-out after the steps that lower the error of its held-out pilots."""
    best, ridge = rollout, _RIDGE
    for number in range(_ROUNDS):
        report(f"refining, cost {best.schedule.cost(pilots.costs):.1f}")
        problem = _linearised(pilots, best, seed=number)
        before = best
        for _ in range(_TRIES):
            given = _changed(before, _change(problem, before, ridge))
            found = roll_out(pilots, before.schedule, before.memory, before.groups, given=given)
            if found.typical_error < before.typical_error:
                best, ridge = found, ridge / _LOWERED
                break
            ridge *= _RAISED
        if not np.log(before.typical_error / best.typical_error) > _GAIN:
            break
    return best


def _change(problem: _Problem, rollout: Rollout, ridge: float) -> Float[np.ndarray, "groups parameters"]:
    """The step of each group, from the pilots on which it is fitted."""
    errors, groups = rollout.errors, rollout.groups
    weights = np.maximum(errors / np.median(errors), _LEAST_SHARE) ** -2
    shares = groups.fits * weights
    matrix = np.tensordot(shares, problem.matrix, 1)
    side = (shares @ problem.gradient)[:, :, None]
    # In units of the features' sizes, which may differ by orders of magnitude.
    scale = 1 / np.sqrt(np.diagonal(matrix, axis1=1, axis2=2) + 1e-300)
    scaled = matrix * scale[:, :, None] * scale[:, None, :]
    solution = np.linalg.solve(scaled + ridge * np.eye(matrix.shape[1]), scale[:, :, None] * side)
    return -scale * solution[:, :, 0]


def _changed(rollout: Rollout, change: Float[np.ndarray, "groups parameters"]) -> list[Fitted]:
    """The coefficients plus a change, whose parameters are in the order of `_linearised`."""
    found, start = [], 0
    for fitted in rollout.fitted:
        parts = []
        for old in (fitted.move, fitted.coefficients):
            count = 0 if old is None else old.shape[1]
            parts.append(old if old is None else old + change[:, start : start + count])
            start += count
        found.append(fitted._replace(move=parts[0], coefficients=parts[1]))
    return found


def _linearised(pilots: FitPilots, rollout: Rollout, seed: int) -> _Problem:
    """One sweep backwards over the steps: the first cotangent is each pilot's distance to its end, the others are
    random and see derivatives of cheap levels."""
    schedule, of = rollout.schedule, rollout.groups.of
    end = rollout.states[-1].y
    count, size = end.shape
    apart = (end - pilots.path[schedule.places[-1]]) / size
    random = _directions(count, size, np.random.default_rng(seed)).astype(end.dtype)
    state = np.concatenate([apart[None].astype(end.dtype), random])
    stand_in = _stand_in(pilots.costs, schedule.base)
    drifts: dict[int, np.ndarray] = {}
    increments: dict[tuple[int, int], np.ndarray] = {}
    blocks = []
    for n in reversed(range(len(schedule.evaluated))):
        before, after, fitted = rollout.states[n], rollout.states[n + 1], rollout.fitted[n]
        features = step_features(after.drifts, after.found)
        row = fitted.coefficients[of].astype(end.dtype)
        blocks.append(_products(state, features))
        known = len(after.drifts)
        weights = np.stack([to_drifts(c) for c in fitted.coefficients[:, :known]])[of].astype(end.dtype)
        for i in range(known):
            _add(drifts, n - i, state * weights[:, i, None])
        _add_increments(increments, schedule, n, after.found, row[:, known:], state)
        y, evaluated = before.y, before.y
        higher = schedule.evaluated[n]
        found = [d for level in higher for d in after.found[level]]
        if fitted.move is not None and schedule.repeats:
            evaluated = moved(y, fitted.move, found, rollout.groups)
        at_drift = _pulled(pilots, (schedule.base, stand_in), schedule.places[n], evaluated, drifts.pop(n))
        if fitted.move is None:
            blocks.append(np.zeros((len(state), count, 0)))
            state = state + at_drift
        else:
            state = state + at_drift if schedule.repeats else state
            blocks.append(_products(state, found))
            move = fitted.move[of].astype(end.dtype)
            moves = {level: after.found[level] for level in higher}
            _add_increments(increments, schedule, n, moves, move, state)
            state = state if schedule.repeats else state + at_drift
        for level in higher:
            # Increments are taken where the state was before it moved. Of random directions they are held fixed.
            given = increments.pop((n, level), None)
            if given is not None:
                for sign, which in ((1, level), (-1, schedule.base)):
                    state[0] += sign * pilots.pullback(which, schedule.places[n], y, given[:1])[0]
    products = np.concatenate(blocks[::-1], axis=2).astype(float)
    matrix = np.einsum("rpf,rpg->pfg", products[1:], products[1:], optimize=True) / len(random)
    return _Problem(products[0], matrix)


def _directions(
    count: int, size: int, draw: np.random.Generator
) -> Float[np.ndarray, "directions pilots size"]:
    """Random ones, whose outer products are the identity over `size` on average; for small states all of them."""
    if size <= _DIRECTIONS:
        return np.broadcast_to(np.eye(size)[:, None], (size, count, size))
    return draw.normal(size=(_DIRECTIONS, count, size)) / size**0.5


def _stand_in(costs: Float[np.ndarray, " levels"], level: int) -> int:
    """The finest of the levels that are cheap beside this one, or this one itself."""
    cheap = np.flatnonzero(costs[:level] <= _CHEAP * costs[level])
    return int(cheap[-1]) if len(cheap) else level


def _pulled(
    pilots: FitPilots, levels: tuple[int, int], place: int, y: np.ndarray, cotangents: np.ndarray
) -> np.ndarray:
    """The first cotangent by the first level's derivative, the others by the second's."""
    if levels[0] == levels[1]:
        return pilots.pullback(levels[0], place, y, cotangents)
    return np.concatenate(
        [
            pilots.pullback(levels[0], place, y, cotangents[:1]),
            pilots.pullback(levels[1], place, y, cotangents[1:]),
        ]
    )


def _products(
    state: np.ndarray, features: list[np.ndarray]
) -> Float[np.ndarray, "directions pilots parameters"]:
    """What each feature's coefficient does along each cotangent."""
    if not features:
        return np.zeros((*state.shape[:2], 0))
    return np.einsum("rpd,fpd->rpf", state, np.stack(features), optimize=True)


def _add(total: dict, place: int | tuple[int, int], part: np.ndarray) -> None:
    total[place] = total[place] + part if place in total else part


def _add_increments(
    increments: dict, schedule, n: int, found: dict, row: np.ndarray, state: np.ndarray
) -> None:
    """Adds the cotangents of the increments used in a step to those of the steps in which they were evaluated."""
    start = 0
    for level in sorted(found):
        steps = [m for m in range(n + 1) if level in schedule.evaluated[m]][::-1]
        for i in range(len(found[level])):
            _add(increments, (steps[i], level), state * row[:, start + i, None])
        start += len(found[level])
