"""The least-squares problem of one step: the coefficients that minimise the pilots' distances to their references.

All computations use the normal equations of each pilot, which are small. Therefore weights of pilots, ridges, subsets
of the features and cross-validation cost little.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

# Ridges relative to the mean square of a feature, among which held-out pilots choose: the one that is tried first, and
# the others. An infinite ridge gives the classical coefficients.
_RIDGE, _RIDGES = 1e-3, (1e-5, 1e-2, 1e-1)
_CLASSICAL = np.inf
# Residuals larger than twice the median have linear instead of quadratic weight (Huber 1964), by three rounds of
# reweighting.
_HUBER, _ROUNDS = 2.0, 3
# More features or a smaller ridge must reduce the held-out error by this fraction. A smaller gain is within the noise.
_GAIN = 2e-3


class Groups(NamedTuple):
    """Groups of pilots for cross-validation: `of` is the group of each pilot, `(P,)`; `fits` are the pilots on which
    the coefficients of each group are fitted, `(J, P)`; `held_out` is whether these exclude the group's own pilots."""

    of: Int[np.ndarray, " pilots"]
    fits: Bool[np.ndarray, "groups pilots"]
    held_out: bool


def left_out(pilots: int, groups: int) -> Groups:
    """Each group's coefficients are fitted on the pilots of all others."""
    of = np.arange(pilots) % groups
    return Groups(of, of[None, :] != np.arange(groups)[:, None], True)


def everyone(pilots: int) -> Groups:
    """One set of coefficients, fitted on all pilots."""
    return Groups(np.zeros(pilots, int), np.ones((1, pilots), bool), False)


class Normal(NamedTuple):
    """The normal equations of each pilot: Gram matrix `(P, F, F)`, right-hand side `(P, F)`, and mean square of the
    target `(P,)`."""

    gram: Float[np.ndarray, "pilots features features"]
    side: Float[np.ndarray, "pilots features"]
    power: Float[np.ndarray, " pilots"]


def normal_equations(
    features: Float[np.ndarray, "features pilots size"], target: Float[np.ndarray, "pilots size"]
) -> Normal:
    """The normal equations of all features, in double precision."""
    a = np.ascontiguousarray(np.moveaxis(features, 0, 1))
    size = target.shape[1]
    gram = a @ np.swapaxes(a, 1, 2) / size
    side = (a @ target[:, :, None])[:, :, 0] / size
    return Normal(gram, side, np.mean(target**2, axis=1))


def _squares(normal: Normal, c: Float[np.ndarray, "pilots features"]) -> Float[np.ndarray, " pilots"]:
    """Mean squared residual of each pilot under its coefficients."""
    quadratic = np.sum((normal.gram @ c[:, :, None])[:, :, 0] * c, axis=1)
    found = normal.power - 2 * np.sum(c * normal.side, axis=1) + quadratic
    # Rounding errors may make it negative.
    return np.maximum(found, 1e-14 * normal.power + 1e-300)


# Indices of features, and their classical coefficients.
Subset = tuple[tuple[int, ...], Float[np.ndarray, " _"]]


class Choice(NamedTuple):
    """A subset of the features, their classical coefficients, and the ridge that pulls towards these."""

    features: tuple[int, ...]
    prior: Float[np.ndarray, " _"]
    ridge: float


def kept(subset: Subset) -> Choice:
    """The choice that keeps the classical coefficients."""
    return Choice(*subset, _CLASSICAL)


def _solve(
    normal: Normal, choice: Choice, groups: Groups
) -> tuple[Float[np.ndarray, "groups features"], float]:
    """The coefficients of each group, which are zero for omitted features; and the mean logarithm of the pilots' mean
    squared residuals, which are those of held-out pilots if the groups are for cross-validation."""
    chosen = list(choice.features)
    gram, side = normal.gram[:, chosen][:, :, chosen], normal.side[:, chosen]
    # Relative to the prior, to which the ridge pulls.
    rest = side - gram @ choice.prior
    weights = np.ones(len(side))
    delta = np.zeros((len(groups.fits), len(chosen)))
    alone = Normal(gram, side, normal.power)
    inside = _squares(alone, np.broadcast_to(choice.prior, side.shape))
    eye = np.eye(len(chosen))
    for _ in range(_ROUNDS if choice.ridge < _CLASSICAL and chosen else 0):
        shares = groups.fits * weights
        total = np.tensordot(shares, gram, 1)
        # In units of the features' sizes, which can differ by orders of magnitude.
        scale = 1 / np.sqrt(np.diagonal(total, axis1=1, axis2=2) + 1e-300)
        scaled = total * scale[:, :, None] * scale[:, None, :] + choice.ridge * eye
        delta = scale * np.linalg.solve(scaled, (scale * (shares @ rest))[:, :, None])[:, :, 0]
        inside = _squares(alone, (choice.prior + delta)[groups.of])
        errors = np.sqrt(inside)
        weights = 1 / np.maximum(1.0, errors / (_HUBER * np.median(errors) + 1e-300))
    coefficients = np.zeros((len(groups.fits), normal.side.shape[1]))
    coefficients[:, chosen] = choice.prior + delta
    return coefficients, float(np.mean(np.log(inside)))


def fit_step(
    normal: Normal,
    subsets: Sequence[Subset],
    groups: Groups,
    choice: Choice | None = None,
) -> tuple[Float[np.ndarray, "groups features"], Choice]:
    """The coefficients of each group, and the choice of the held-out pilots.

    **Arguments:**

    - `subsets`: of the features, each with its prior coefficients, the simplest first.
    - `groups`: the groups of pilots.
    - `choice`: the choice of an earlier fit, which is then not made again.
    """
    if choice is not None:
        return _solve(normal, choice, groups)[0], choice
    best, found = _best(normal, [Choice(*subset, _RIDGE) for subset in subsets], groups)
    best, found = _best(normal, [best, *[best._replace(ridge=ridge) for ridge in _RIDGES]], groups, found)
    # The classical coefficients of one of the subsets, if fitted ones are not better.
    best, found = _best(normal, [best, *[kept(subset) for subset in subsets]], groups, found)
    return found[0], best


def _best(
    normal: Normal,
    candidates: list[Choice],
    groups: Groups,
    known: tuple[np.ndarray, float] | None = None,
) -> tuple[Choice, tuple[np.ndarray, float]]:
    """The candidate with the smallest held-out residuals; of about equal ones the first."""
    best, found = candidates[0], known or _solve(normal, candidates[0], groups)
    for candidate in candidates[1:]:
        tried = _solve(normal, candidate, groups)
        if tried[1] < found[1] - _GAIN:
            best, found = candidate, tried
    return best, found
