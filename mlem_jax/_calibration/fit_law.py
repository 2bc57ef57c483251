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

    def target(
        self, states: Float[np.ndarray, "pilots size"], reference: Float[np.ndarray, "pilots size"]
    ) -> Float[np.ndarray, "pilots size"]:
        """The targets of the states: mixtures of their references and of the states after the transport map."""
        mine, theirs = states - states.mean(0), reference - reference.mean(0)
        a, b = mine @ self.components, theirs @ self.components
        rest_a, rest_b = mine - a @ self.components.T, theirs - b @ self.components.T
        factors = _bounded(np.sqrt(np.mean(b**2, axis=0)), np.sqrt(np.mean(a**2, axis=0)))
        rest = _bounded(np.sqrt(np.mean(rest_b**2)), np.sqrt(np.mean(rest_a**2)))
        placed = reference.mean(0) + (a * factors) @ self.components.T + rest * rest_a
        return (1 - self.share) * reference + self.share * placed


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
