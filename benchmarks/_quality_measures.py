"""Three distances between sets of images, and how far they are from a floor, with standard errors.

All three are of our own making: their values compare with nothing outside this study.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mlem_jax.diffusion._sampling.frechet import frechet_of_features

COMPONENTS, DIRECTIONS = 48, 256
# With more pixels a covariance matrix takes too long; as many images are enough for its first components.
MANY = 2000
# Groups of images, each left out in turn (the delete-a-group jackknife).
GROUPS = 10
FEATURES, PIXELS, SLICED = (
    "Frechet distance of features",
    "Frechet distance of principal components",
    "sliced Wasserstein",
)
MEASURES = (FEATURES, PIXELS, SLICED)
SHORT = {FEATURES: "features", PIXELS: "components", SLICED: "sliced"}


class Views(NamedTuple):
    """What the measures see of a set of images: features of a network, coordinates on principal components of real
    images' pixels, and projections of the pixels on random directions."""

    features: Float[np.ndarray, "n features"]
    components: Float[np.ndarray, "n components"]
    projections: Float[np.ndarray, "n directions"]

    def without(self, group: int) -> "Views":
        """Without every tenth image."""
        kept = np.arange(len(self.features)) % GROUPS != group
        return Views(*(part[kept] for part in self))


class Eye:
    """Turns images into `Views`, by a function from images to features, and the principal components of real images."""

    def __init__(
        self,
        features: Callable[[np.ndarray], Float[np.ndarray, "n features"]],
        train: Float[np.ndarray, "n h w c"],
        *,
        seed: int = 0,
    ):
        self.features = features
        flat = train.reshape(len(train), -1).astype(float)
        self._mean = flat.mean(0)
        self._basis = _components(flat)
        directions = np.random.default_rng(seed).normal(size=(flat.shape[1], DIRECTIONS))
        self._directions = directions / np.linalg.norm(directions, axis=0)

    def look(self, images: Float[np.ndarray, "n h w c"]) -> Views:
        flat = images.reshape(len(images), -1).astype(float)
        return Views(self.features(images), (flat - self._mean) @ self._basis, flat @ self._directions)


def _components(flat: Float[np.ndarray, "n pixels"]) -> Float[np.ndarray, "pixels components"]:
    """The first principal components; of large images from the first images alone, fewer than there are pixels."""
    if flat.shape[1] <= MANY:
        _, vectors = np.linalg.eigh(np.cov(flat.T))
        return vectors[:, ::-1][:, :COMPONENTS]
    few = flat[:MANY]
    return np.linalg.svd(few - few.mean(0), full_matrices=False)[2][:COMPONENTS].T


def distances(mine: Views, theirs: Views) -> Float[np.ndarray, " measures"]:
    """In the order of `MEASURES`; both sets of the same size. The last is the root mean square over directions of the
    2-Wasserstein distance of the projections."""
    sorted_mine, sorted_theirs = np.sort(mine.projections, axis=0), np.sort(theirs.projections, axis=0)
    return np.array(
        [
            frechet_of_features(mine.features, theirs.features),
            frechet_of_features(mine.components, theirs.components),
            np.sqrt(np.mean((sorted_mine - sorted_theirs) ** 2)),
        ]
    )


class Judged(NamedTuple):
    """Distances to a target, their excess over those of the converged sampler from the same noise, and the standard
    errors of that excess."""

    distance: Float[np.ndarray, " measures"]
    excess: Float[np.ndarray, " measures"]
    error: Float[np.ndarray, " measures"]


class Target:
    """A set of images that others are compared with, and the converged sampler's distance to it, the floor."""

    def __init__(self, target: Views, converged: Views):
        self._parts = [(target, distances(converged, target))]
        for group in range(GROUPS):
            part = target.without(group)
            self._parts.append((part, distances(converged.without(group), part)))

    @property
    def floor(self) -> Float[np.ndarray, " measures"]:
        return self._parts[0][1]

    def judge(self, mine: Views) -> Judged:
        """Images from the converged sampler's noise. The errors are of the difference, in which most of the sampling
        noise cancels. The excess of a finite set is too large by a part that falls as its size; the jackknife
        removes it.
        """
        everything = [mine, *(mine.without(group) for group in range(GROUPS))]
        found = np.array(
            [distances(m, target) for m, (target, _) in zip(everything, self._parts, strict=True)]
        )
        excess = found - np.array([floor for _, floor in self._parts])
        mean = excess[1:].mean(0)
        error = np.sqrt((GROUPS - 1) / GROUPS * ((excess[1:] - mean) ** 2).sum(0))
        return Judged(found[0], GROUPS * excess[0] - (GROUPS - 1) * mean, error)
