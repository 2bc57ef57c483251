"""The inputs of a training step: images, noise and labels, all functions of seed and step."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._data import as_floats, Images
from .._ladder import Config
from .._network import AbstractNetwork
from .._predictor import Preconditioned, training_target

# Images, and a label for each of them or none.
Labelled = tuple[Images, Int[np.ndarray, " n"] | None]


def check_labels(
    classes: int | None, labels: Int[np.ndarray, "..."] | None, count: int, *, what: str = "images"
) -> None:
    """Raises `ValueError` unless there is one label from 0 to `classes - 1` for each of `count` images, or
    neither classes nor labels."""
    if classes is None:
        if labels is not None:
            raise ValueError(
                f"Labels were given for the {what}, but the configuration has no classes. Write classes = "
                f"{int(np.max(labels, initial=0)) + 1} at the top of its file, or leave the labels out."
            )
        return
    if labels is None:
        raise ValueError(
            f"The configuration has classes = {classes}, and no labels were given for the {what}. Pass them, for "
            "example load_labels(folder), or leave classes out of the file."
        )
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"The labels of the {what} are an array of shape {labels.shape} and type {labels.dtype}; integers of "
            f"shape ({count},), one per image, are expected."
        )
    if count and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"The labels of the {what} go from {labels.min()} to {labels.max()}; with classes = {classes} they are "
            f"expected from 0 to {classes - 1}."
        )


def batch_indices(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """The indices of the images of step number `step`. Epochs are permutations, the same for all levels."""
    per_epoch = count // batch_size
    order = np.random.default_rng((seed, step // per_epoch)).permutation(count)
    position = (step % per_epoch) * batch_size
    return order[position : position + batch_size]


def mirrored(images: Float[np.ndarray, "n h w c"], seed: int, step: int) -> Float[np.ndarray, "n h w c"]:
    """The images of step number `step`, each mirrored left to right with probability one half."""
    # The third number keeps this apart from the order of the images, which has two.
    chosen = np.random.default_rng((seed, step, 0)).random(len(images)) < 0.5
    return np.where(chosen[:, None, None, None], images[:, :, ::-1], images)


def noised(
    config: Config,
    images: Float[Array, "n h w c"],
    key: PRNGKeyArray,
    *,
    log_normal: tuple[float, float] | None = None,
) -> tuple[Float[Array, "n h w c"], Float[Array, " n"], Float[Array, "n h w c"]]:
    """Inputs of a network for a noised batch (images and conditioning), and its target."""
    key_s, key_eps = jr.split(key)
    process = config.process
    s = process.draw_s(key_s, (images.shape[0],), log_normal=log_normal)
    column = s[:, None, None, None]
    eps = jr.normal(key_eps, images.shape)
    x = process.alpha(column) * images + process.sigma(column) * eps
    if config.preconditioned:
        # The network is not called: only its scales are needed.
        return Preconditioned(jnp.zeros_like).training_pair(x, process.sigma(s), images)
    return x, jnp.log(s), training_target(config.prediction, process, images, eps, column)


def drop_labels(labels: Int[Array, " n"], classes: int, rate: float, key: PRNGKeyArray) -> Int[Array, " n"]:
    """The labels, each replaced by `classes`, which means "no label", with probability `rate` (Ho & Salimans 2022,
    algorithm 1)."""
    return jnp.where(jr.bernoulli(key, rate, labels.shape), jnp.asarray(classes, labels.dtype), labels)


@eqx.filter_jit
def _errors(
    config: Config,
    networks: tuple[AbstractNetwork, ...],
    images: Array,
    labels: Array | None,
    key: PRNGKeyArray,
) -> tuple[Float[Array, " networks"], Float[Array, " networks"]]:
    x, noise_level, target = noised(config, images, key)
    outs = [network(x, noise_level, labels) for network in networks]
    data = jnp.stack([jnp.mean((out - target) ** 2) for out in outs])
    finest = jnp.stack([jnp.mean((out - outs[-1]) ** 2) for out in outs])
    return data, finest


def held_out_losses(
    config: Config,
    networks: tuple[AbstractNetwork, ...],
    images: Images,
    labels: Int[np.ndarray, " n"] | None = None,
) -> dict[str, list[float]]:
    """For each network, its mean squared error against the data's target and against the finest
    network's output, on noised held-out images (fixed noise, whole batches of at most 250) with their labels."""
    size = min(250, len(images))
    rows = []
    for i, start in enumerate(range(0, len(images) - size + 1, size)):
        part = slice(start, start + size)
        chosen = None if labels is None else jnp.asarray(labels[part])
        batch = jnp.asarray(as_floats(images[part]))
        rows.append(_errors(config, networks, batch, chosen, jr.fold_in(jr.key(1), i)))
    data, finest = (np.mean(np.asarray(column), axis=0) for column in zip(*rows, strict=True))
    return {"data": [float(x) for x in data], "to_finest": [float(x) for x in finest]}
