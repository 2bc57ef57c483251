"""Fits of one step that also bring the pilots' states, as a set, near the reference's.

Least squares draws every state towards its conditional mean: what the features cannot predict is lost, and with it
spread (images are a little blurred). So part of the objective compares sets: means, and standard deviations along the
principal components of the reference's end states, which is the squared 2-Wasserstein distance of Gaussians with these
components. It is minimised by least squares too, in rounds: the target of each state is the reference's, mixed with
the place that the state would have in a set of the reference's mean and spread (the optimal transport map).
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from .fit_step import Choice, fit_step, Groups, normal_equations, Subset

# Principal components at most, and as a share of the pilots: more are fitted to their luck.
_COMPONENTS, _SHARE_OF_PILOTS = 48, 0.75
_ROUNDS = 8
# Spreads are changed by at most this factor in a round.
_LARGEST_FACTOR = 2.0


class Law(NamedTuple):
    """What sets of states are compared by.

    - `share`: of the objective, from 0 (each pilot's own path alone) to below 1.
    - `components`: orthonormal directions, `(D, J)`; what is orthogonal to them counts as one more.
    """

    share: float
    components: Float[np.ndarray, "size components"]

    @classmethod
    def of(cls, ends: Float[np.ndarray, "pilots size"], share: float) -> "Law":
        """By the principal components of the reference's end states."""
        apart = ends.astype(float) - ends.mean(0)
        _, _, vectors = np.linalg.svd(apart, full_matrices=False)
        return cls(share, vectors[: min(_COMPONENTS, int(_SHARE_OF_PILOTS * len(ends)))].T)

    def target(
        self, states: Float[np.ndarray, "pilots size"], reference: Float[np.ndarray, "pilots size"]
    ) -> Float[np.ndarray, "pilots size"]:
        """The reference's states, mixed with where the given ones would be in a set of its mean and spread."""
        mine, theirs = states - states.mean(0), reference - reference.mean(0)
        a, b = mine @ self.components, theirs @ self.components
        rest_a, rest_b = mine - a @ self.components.T, theirs - b @ self.components.T
        factors = _bounded(np.sqrt(np.mean(b**2, axis=0)), np.sqrt(np.mean(a**2, axis=0)))
        rest = _bounded(np.sqrt(np.mean(rest_b**2)), np.sqrt(np.mean(rest_a**2)))
        placed = reference.mean(0) + (a * factors) @ self.components.T + rest * rest_a
        return (1 - self.share) * reference + self.share * placed


def _bounded(wanted: Any, found: Any) -> Any:
    """How many times the spread that was found is the one wanted."""
    return np.clip(wanted / np.maximum(found, 1e-300), 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)


def fit_features(
    features: list[np.ndarray],
    start: Float[np.ndarray, "pilots size"],
    reference: Float[np.ndarray, "pilots size"],
    subsets: list[Subset],
    groups: Groups,
    choice: Choice | None,
    law: Law | None,
) -> Float[np.ndarray, "groups features"]:
    """The multiples of features that, added to the states, bring them nearest to the reference. Held-out pilots choose
    among the subsets by the distance to their own references, whatever the law."""
    stacked = np.stack([np.asarray(feature, float) for feature in features])
    normal = normal_equations(stacked, reference - start)
    coefficients, chosen = fit_step(normal, subsets, groups, choice)
    if law is None or choice is not None:
        return coefficients
    for _ in range(_ROUNDS):
        states = start + np.einsum("pf,fpd->pd", coefficients[groups.of], stacked, optimize=True)
        normal = normal_equations(stacked, law.target(states, reference) - start)
        coefficients, _ = fit_step(normal, subsets, groups, chosen)
    return coefficients
