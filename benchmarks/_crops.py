"""Features of images that have no labels: a classifier learns from which place of an image a crop is, and how it is
turned (a pretext task, as in Gidaris et al. 2018 for rotations).

Crops have half the image's height and width and come from three by three places. The features of an image are the mean
of its crops' features.
"""

import numpy as np
from _distribution import Classifier, features, train_classifier
from jaxtyping import Float, Int

PLACES, TURNS = 3, 4
CLASSES = PLACES * PLACES * TURNS


def crop(images: Float[np.ndarray, "n h w c"], place: int, turns: int = 0) -> Float[np.ndarray, "n a a c"]:
    """The crops from one place, turned by quarters. Images are square."""
    side = images.shape[1] // 2
    row, column = (i * (side // (PLACES - 1)) for i in divmod(place, PLACES))
    return np.rot90(images[:, row : row + side, column : column + side], turns, (1, 2))


def labelled_crops(
    images: Float[np.ndarray, "n h w c"], *, seed: int = 0
) -> tuple[Float[np.ndarray, "n a a c"], Int[np.ndarray, " n"]]:
    """One crop of each image, and its class."""
    labels = np.random.default_rng(seed).integers(CLASSES, size=len(images))
    side = images.shape[1] // 2
    found = np.empty((len(images), side, side, images.shape[3]), np.float32)
    for label in range(CLASSES):
        chosen = labels == label
        found[chosen] = crop(images[chosen], *divmod(label, TURNS))
    return found, labels


def untrained(shape: tuple[int, int, int]) -> Classifier:
    """For images of this shape."""
    return Classifier((shape[0] // 2, shape[1] // 2, shape[2]), CLASSES)


def train_on_crops(images: Float[np.ndarray, "n h w c"], *, steps: int) -> Classifier:
    """On one crop of each image."""
    return train_classifier(untrained(images.shape[1:]), *labelled_crops(images), steps=steps)


def crop_features(model: Classifier, images: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n features"]:
    return np.mean([features(model, crop(images, place)) for place in range(PLACES**2)], axis=0)
