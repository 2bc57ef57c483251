"""How far two sets of images are apart as distributions, in the features of a network that the user names."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from .._data import as_floats


def frechet_distance(
    images: Shaped[np.ndarray, "n h w c"],
    others: Shaped[np.ndarray, "m h w c"],
    *,
    features: Callable[[Any], Any],
    batch_size: int = 256,
) -> float:
    r"""The squared Frechet distance between two sets of images: that of the normal distributions which have the
    means and covariances of their features (Dowson & Landau 1982; Heusel et al. 2017),

    $$|m_1 - m_2|^2 + \operatorname{tr}\big(C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2}\big).$$

    !!! example

        ```python
        real = load_data("pictures", (64, 64, 3)).held_out
        frechet_distance(found.images[: len(real)], real, features=classifier.features)
        ```

    It is FID only if the features are the published Inception network's, which this library does not have. Numbers
    are to be compared for one network of features and one number of images only: the distance of small sets is too
    large, and needs many more images than there are features.

    **Arguments:**

    - `images`, `others`: bytes, or numbers in `[-1, 1]`.
    - `features`: a function of a batch of images, numbers in `[-1, 1]`, that returns `(batch, features)`.
    - `batch_size`: how many images it is given at a time.

    Raises `ValueError` for fewer than two images, images of different shapes, or features that are not finite numbers
    of that shape.
    """
    if len(images) < 2 or len(others) < 2 or images.shape[1:] != others.shape[1:]:
        raise ValueError(
            f"frechet_distance was given images of shapes {images.shape} and {others.shape}; two sets of at least two "
            "images of one shape are expected."
        )
    return frechet_of_features(*(_features(part, features, batch_size) for part in (images, others)))


def frechet_of_features(
    one: Float[np.ndarray, "n features"], other: Float[np.ndarray, "m features"]
) -> float:
    """The squared Frechet distance between the normal distributions with the means and covariances of two sets."""
    difference = np.sum((one.mean(axis=0) - other.mean(axis=0)) ** 2)
    first, second = (np.atleast_2d(np.cov(part, rowvar=False)) for part in (one, other))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # The eigenvalues of a product of two covariances are not negative, but for rounding.
    middle = np.sum(np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)))
    return float(difference + np.trace(first) + np.trace(second) - 2 * middle)


def _features(
    images: np.ndarray, features: Callable[[Any], Any], batch_size: int
) -> Float[np.ndarray, "n features"]:
    parts = []
    for start in range(0, len(images), batch_size):
        batch = as_floats(np.asarray(images[start : start + batch_size]))
        found = np.asarray(features(batch), np.float64)
        if found.ndim != 2 or len(found) != len(batch) or not np.all(np.isfinite(found)):
            raise ValueError(
                f"features returned an array of shape {found.shape} for {len(batch)} images, or numbers that are not "
                f"finite; ({len(batch)}, features) is expected, one row for each image."
            )
        parts.append(found)
    return np.concatenate(parts)
