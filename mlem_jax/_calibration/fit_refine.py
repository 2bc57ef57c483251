"""Refinement of the coefficients of all steps together: a few Gauss-Newton steps on the mean logarithm of the pilots'
errors at the end.

The fit in closed loop treats one step at a time, so that each step ends near the reference. Only the end of the solve
matters, though, and later steps can compensate for the errors of earlier ones. The gradient is exact: one reverse sweep
through the levels. The Gauss-Newton matrix is approximate. It is sketched with random directions at the end (Pilanci &
Wainwright 2016), and pulled back through a cheap level. It determines how fast the minimum is found, not where it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.tree_util as jtu
import numpy as np
from jaxtyping import Float

from .fit_pilots import FitPilots
from .fit_rollout import Fitted, moved, roll_out, Rollout, step_features, to_drifts
from .kept_parts import KeptParts

# The largest number of Gauss-Newton steps, and the decrease of the logarithm of the held-out error below which no
# further step is taken.
_ROUNDS, _GAIN = 3, 0.01
# The Levenberg-Marquardt ridge, relative to the diagonal: its first value, the number of values that are tried in a
# step, and the factors by which it grows after a step that was too long and shrinks after a successful one.
_RIDGE, _TRIES, _RAISED, _LOWERED = 0.1, 3, 6.0, 3.0
# Number of random directions in the sketch.
_DIRECTIONS = 8
# The derivative of a level is approximated by that of a cheaper one which costs at most this fraction.
_CHEAP = 0.1
# The gradient of the mean logarithm weights pilots by 1 / error**2. Errors below this fraction of the median are
# counted as that fraction, so that a few nearly exact pilots do not dominate.
_LEAST_SHARE = 0.5


class _Problem(NamedTuple):
    """The gradient of half the squared error of each pilot with respect to its group's parameters, `(P, F)`, and the
    Gauss-Newton matrix, `(P, F, F)`."""

    gradient: Float[np.ndarray, "pilots parameters"]
    matrix: Float[np.ndarray, "pilots parameters parameters"]


def refine(
    pilots: FitPilots, rollout: Rollout, report: Callable[[str], None], kept: KeptParts | None = None
) -> Rollout:
    """The roll-out with refined coefficients. A step is accepted only if it decreases the error of held-out pilots.
    Each step is a part of `kept`."""
    kept = KeptParts() if kept is None else kept
    best, ridge = rollout, np.array(_RIDGE)
    structure = jtu.tree_structure(list(rollout.fitted))
    for number in range(_ROUNDS):
        report(f"refining, cost {best.schedule.cost(pilots.costs):.1f}")
        before, computed = best, []

        def compute(before: Rollout = before, ridge: float = float(ridge), number: int = number) -> list[Any]:
            found, after = _one_step(pilots, before, ridge, seed=number)
            computed.append(found)  # noqa: B023 (called at once)
            return [after, *jtu.tree_leaves(list(found.fitted))]

        ridge, *numbers = kept.arrays(f"step-{number + 1}", compute)
        given = jtu.tree_unflatten(structure, numbers)
        best = computed[0] if computed else roll_out(pilots, *before[:3], given=given)
        if not np.log(before.typical_error / best.typical_error) > _GAIN:
            break
    return best


def _one_step(pilots: FitPilots, before: Rollout, ridge: float, seed: int) -> tuple[Rollout, float]:
    """The roll-out after one step, or the one before if no step lowers the error, and the next ridge."""
    problem = _linearised(pilots, before, seed=seed)
    for _ in range(_TRIES):
        given = _changed(before, _change(problem, before, ridge))
        found = roll_out(pilots, *before[:3], given=given)
        if found.typical_error < before.typical_error:
            return found, ridge / _LOWERED
        ridge *= _RAISED
    return before, ridge


def _change(problem: _Problem, rollout: Rollout, ridge: float) -> Float[np.ndarray, "groups parameters"]:
    """The Gauss-Newton step of each group's parameters, from the pilots on which the group is fitted."""
    errors, groups = rollout.errors, rollout.groups
    weights = np.maximum(errors / np.median(errors), _LEAST_SHARE) ** -2
    shares = groups.fits * weights
    matrix = np.tensordot(shares, problem.matrix, 1)
    side = (shares @ problem.gradient)[:, :, None]
    # Features may differ by orders of magnitude, so the system is scaled to a unit diagonal.
    scale = 1 / np.sqrt(np.diagonal(matrix, axis1=1, axis2=2) + 1e-300)
    scaled = matrix * scale[:, :, None] * scale[:, None, :]
    solution = np.linalg.solve(scaled + ridge * np.eye(matrix.shape[1]), scale[:, :, None] * side)
    return -scale * solution[:, :, 0]


def _changed(rollout: Rollout, change: Float[np.ndarray, "groups parameters"]) -> list[Fitted]:
    """The coefficients plus a change of all parameters, in the order of `_linearised`."""
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
    """One reverse sweep over the steps. The first cotangent, the difference of each pilot's end state to its reference,
    is pulled back through the levels themselves. The others are the sketch's random directions, which are pulled back
    through a cheap level."""
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
            # Increments are evaluated at the state before it is moved. The sketch neglects their derivative.
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
    """Random directions whose outer products have the mean `identity / size`, or all unit vectors for small states."""
    if size <= _DIRECTIONS:
        return np.broadcast_to(np.eye(size)[:, None], (size, count, size))
    return draw.normal(size=(_DIRECTIONS, count, size)) / size**0.5


def _stand_in(costs: Float[np.ndarray, " levels"], level: int) -> int:
    """The finest level that costs at most a tenth of this one, or this level itself if there is none."""
    cheap = np.flatnonzero(costs[:level] <= _CHEAP * costs[level])
    return int(cheap[-1]) if len(cheap) else level


def _pulled(
    pilots: FitPilots, levels: tuple[int, int], place: int, y: np.ndarray, cotangents: np.ndarray
) -> np.ndarray:
    """Pulls the first cotangent back through the first level, and the others through the second level."""
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
    """The derivative of each cotangent's objective with respect to the coefficient of each feature."""
    if not features:
        return np.zeros((*state.shape[:2], 0))
    return np.einsum("rpd,fpd->rpf", state, np.stack(features), optimize=True)


def _add(total: dict, place: int | tuple[int, int], part: np.ndarray) -> None:
    total[place] = total[place] + part if place in total else part


def _add_increments(
    increments: dict, schedule, n: int, found: dict, row: np.ndarray, state: np.ndarray
) -> None:
    """Adds the cotangents of the increments that a step uses to the steps in which they were evaluated."""
    start = 0
    for level in sorted(found):
        steps = [m for m in range(n + 1) if level in schedule.evaluated[m]][::-1]
        for i in range(len(found[level])):
            _add(increments, (steps[i], level), state * row[:, start + i, None])
        start += len(found[level])
