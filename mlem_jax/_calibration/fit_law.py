"""Fits of one step that also reduce the distance between the distributions of the pilots' states and the reference.

Least squares moves every state towards its conditional mean. The part that the features cannot predict is lost, which
reduces standard deviations (images are slightly blurred). Therefore a part of the objective compares distributions by
their means and their standard deviations along the principal components of the reference's end states: the squared
2-Wasserstein distance of Gaussians with these components. It is minimised by least squares too, in rounds. The target
of each state is a mixture of its reference and of its image under the optimal transport map to the reference's mean and
standard deviations.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from .fit_step import Choice, fit_step, Groups, normal_equations, Subset

# The largest number of principal components, and of components per pilot. More would be fitted to the noise of the
# pilots.
_COMPONENTS, _SHARE_OF_PILOTS = 48, 0.75
_ROUNDS = 8
# Standard deviations are changed by at most this factor in a round.
_LARGEST_FACTOR = 2.0


class Law(NamedTuple):
    """The comparison of distributions.

    - `share`: its weight in the objective, from 0 (only distances to the pilots' own references) to below 1.
    - `components`: orthonormal directions, `(D, J)`; their orthogonal complement is treated as one more component.
    """

    share: float
    components: Float[np.ndarray, "size components"]

    @classmethod
    def of(cls, ends: Float[np.ndarray, "pilots size"], share: float) -> "Law":
        """The comparison along the principal components of the reference's end states."""
        apart = ends.astype(float) - ends.mean(0)
        _, _, vectors = np.linalg.svd(apart, full_matrices=False)
        return cls(share, vectors[: min(_COMPONENTS, int(_SHARE_OF_PILOTS * len(ends)))].T)

    def distance(
        self, states: Float[np.ndarray, "pilots size"], reference: Float[np.ndarray, "pilots size"]
    ) -> float:
        """The 2-Wasserstein distance of Gaussians with the means and these standard deviations, per root of `D`, so
        that it compares with RMS errors."""
        a, b, rest_a, rest_b = self._parts(states, reference)
        means = np.sum((states.mean(0) - reference.mean(0)) ** 2)
        spreads = np.sum((_deviation(a) - _deviation(b)) ** 2)
        rest = (
            np.sqrt(np.mean(np.sum(rest_a**2, axis=1))) - np.sqrt(np.mean(np.sum(rest_b**2, axis=1)))
        ) ** 2
        return float(np.sqrt((means + spreads + rest) / states.shape[1]))

    def target(
        self, states: Float[np.ndarray, "pilots size"], reference: Float[np.ndarray, "pilots size"]
    ) -> Float[np.ndarray, "pilots size"]:
        """The targets of the states: mixtures of their references and of the states after the transport map."""
        a, b, rest_a, rest_b = self._parts(states, reference)
        factors = _bounded(_deviation(b), _deviation(a))
        rest = _bounded(np.sqrt(np.mean(rest_b**2)), np.sqrt(np.mean(rest_a**2)))
        placed = reference.mean(0) + (a * factors) @ self.components.T + rest * rest_a
        return (1 - self.share) * reference + self.share * placed

    def _parts(self, states: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, ...]:
        """The components of the centred states and of the centred reference, and the remainders of both."""
        mine, theirs = states - states.mean(0), reference - reference.mean(0)
        a, b = mine @ self.components, theirs @ self.components
        return a, b, mine - a @ self.components.T, theirs - b @ self.components.T


def objective(
    share: float, error: Float[np.ndarray, " n"], distance: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The root of the weighted mean square of a typical error and of the distance of the distributions."""
    return np.sqrt((1 - share) * error**2 + share * distance**2)


def _deviation(components: Float[np.ndarray, "pilots components"]) -> Float[np.ndarray, " components"]:
    """The standard deviations of centred components."""
    return np.sqrt(np.mean(components**2, axis=0))


def _bounded(wanted: Any, found: Any) -> Any:
    """The ratio of two standard deviations, bounded."""
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
    """The coefficients of features which, added to the states, minimise their distance to the reference. Held-out
    pilots choose among the subsets by the distance to their own references, also with a law."""
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
