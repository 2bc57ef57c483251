"""Distances between the distributions of two sets of images, without any downloaded network.

There are three distances: the sliced Wasserstein distance of the pixels, and the kernel maximum mean discrepancy and
the Frechet distance of the features of a small classifier that is trained here. The last one has the formula of the FID
but other features, so its values can only be compared within this study.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float

from mlem_jax._io import write_safely
from mlem_jax.diffusion._sampling.frechet import frechet_of_features

FEATURES = 64


class Classifier(eqx.Module):
    """Two strided convolutions and a layer of features; about 90,000 parameters for images of 28 x 28."""

    kernels: tuple[Array, Array]
    hidden: Array
    last: Array

    def __init__(self, shape: tuple[int, int, int] = (28, 28, 1), classes: int = 10, *, seed: int = 0):
        height, width, channels = shape
        keys, places = jr.split(jr.key(seed), 4), (-(-height // 4)) * (-(-width // 4))
        self.kernels = (
            jr.normal(keys[0], (5, 5, channels, 16)) / (25 * channels) ** 0.5,
            jr.normal(keys[1], (5, 5, 16, 32)) / (25 * 16) ** 0.5,
        )
        self.hidden = jr.normal(keys[2], (places * 32, FEATURES)) / (places * 32) ** 0.5
        self.last = jr.normal(keys[3], (FEATURES, classes)) / FEATURES**0.5

    def features(self, images: Float[Array, "n h w c"]) -> Float[Array, "n features"]:
        x = images
        for kernel in self.kernels:
            dims = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=dims))
        return jax.nn.relu(x.reshape(len(x), -1) @ self.hidden)

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        return self.features(images) @ self.last


def train_classifier(
    model: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    steps: int,
    seed: int = 0,
    batch_size: int = 128,
) -> Classifier:
    """Trains with Adam."""
    optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    @eqx.filter_jit
    def step(model: Classifier, state: Any, x: Array, y: Array) -> tuple[Classifier, Any]:
        def loss(model: Classifier) -> Array:
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        gradient = eqx.filter_grad(loss)(model)
        updates, state = optimiser.update(gradient, state)
        return eqx.apply_updates(model, updates), state

    state, draw = optimiser.init(eqx.filter(model, eqx.is_array)), np.random.default_rng(seed)
    for _ in range(steps):
        chosen = draw.integers(len(images), size=batch_size)
        model, state = step(model, state, jnp.asarray(images[chosen]), jnp.asarray(labels[chosen]))
    return model


def kept_model(path: Path, like: Classifier, train: Callable[[], Classifier]) -> Classifier:
    """That of an earlier run, or a new one, which is kept."""
    if path.exists():
        return eqx.tree_deserialise_leaves(path, like)
    model = train()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safely(path, lambda file: eqx.tree_serialise_leaves(file, model))
    return model


def features(model: Classifier, images: np.ndarray) -> Float[np.ndarray, "n features"]:
    """In blocks, so that thousands of images fit."""
    call = eqx.filter_jit(lambda x: model.features(x))
    blocks = [np.asarray(call(jnp.asarray(images[i : i + 500]))) for i in range(0, len(images), 500)]
    return np.concatenate(blocks).astype(float)


def accuracy(model: Classifier, images: np.ndarray, labels: np.ndarray) -> float:
    found = features(model, images) @ np.asarray(model.last, float)
    return float(np.mean(found.argmax(1) == labels))


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, *, directions: int = 256, seed: int = 0) -> float:
    """Root mean square over random directions of the 2-Wasserstein distance of the projections; the two sets have
    the same size. Units of the state: a shift by `v` gives `|v| / sqrt(components)`."""
    x, y = a.reshape(len(a), -1), b.reshape(len(b), -1)
    u = np.random.default_rng(seed).normal(size=(x.shape[1], directions))
    u /= np.linalg.norm(u, axis=0)
    return float(np.sqrt(np.mean((np.sort(x @ u, axis=0) - np.sort(y @ u, axis=0)) ** 2)))


def kernel_discrepancy(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012) with a Gaussian kernel whose bandwidth is the
    median distance within `b`. Zero in expectation, so at times negative, for samples of one distribution."""

    def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.maximum(np.sum(x**2, 1)[:, None] + np.sum(y**2, 1)[None] - 2 * x @ y.T, 0)

    within = distances(b, b)
    bandwidth = np.median(within[np.triu_indices(len(b), 1)])

    def mean(d: np.ndarray, *, same: bool) -> float:
        k = np.exp(-d / bandwidth)
        return (k.sum() - len(k)) / (len(k) * (len(k) - 1)) if same else k.mean()

    return float(
        mean(distances(a, a), same=True) + mean(within, same=True) - 2 * mean(distances(a, b), same=False)
    )


def distances(model: Classifier, images: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """All three, between two sets of the same size."""
    mine, theirs = features(model, images), features(model, real)
    return {
        "sliced_wasserstein": sliced_wasserstein(images, real),
        "kernel_discrepancy": kernel_discrepancy(mine, theirs),
        "frechet": frechet_of_features(mine, theirs),
    }
