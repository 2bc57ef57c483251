"""Checks of the arguments of networks."""

import math

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

from .network import AbstractNetwork


def check_integers(name: str, least: int = 1, **values: object) -> None:
    """Raises `ValueError` unless all are integers of at least `least`."""
    for argument, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
            raise ValueError(f"{name} was given {argument}={value!r}; {kind} is expected.")


def check_call(network: AbstractNetwork, x: Array, noise_level: ArrayLike, label: ArrayLike | None) -> None:
    """Raises `ValueError` unless the arguments fit the network and each other, see `AbstractNetwork`."""
    name, classes = type(network).__name__, network.classes
    if x.shape[-3:] != network.shape:
        raise ValueError(
            f"This {name} was built for images of shape {network.shape} (height, width, channels) "
            f"and was given an array of shape {x.shape}."
        )
    expected = ((), (math.prod(x.shape[:-3]),)) if x.ndim > 3 else ((),)
    if jnp.shape(noise_level) not in expected:
        raise ValueError(
            f"This {name} was given images of shape {x.shape} with noise levels of shape "
            f"{jnp.shape(noise_level)}; one for all, shape (), or one per image of a batch is expected."
        )
    if classes is None:
        if label is not None:
            raise ValueError(
                f"This {name} was built without classes and was given a label. Leave the label (the args of the "
                f"solve) out, or build and train it with {name}(..., classes=...)."
            )
        return
    if label is None:
        raise ValueError(
            f"This {name} needs a label and was given none. Write network(x, noise_level, label), "
            "diffrax.diffeqsolve(..., args=labels) or sample(..., labels=labels), with integers from 0 to "
            f"{classes - 1}, or {classes} for no label."
        )
    given = jnp.asarray(label)
    if not jnp.issubdtype(given.dtype, jnp.integer) or given.shape not in expected:
        raise ValueError(
            f"This {name} was given images of shape {x.shape} with labels of shape {given.shape} and type "
            f"{given.dtype}; an integer for all, shape (), or one per image of a batch is expected."
        )
    if not isinstance(given, Tracer):
        check_label_range(name, np.asarray(given), classes)


def check_label_range(name: str, labels: np.ndarray, classes: int) -> None:
    """Raises `ValueError` unless all labels are from 0 to `classes`, which means "no label"."""
    if labels.size and (labels.min() < 0 or labels.max() > classes):
        raise ValueError(
            f"{name} with {classes} classes was given labels from {labels.min()} to {labels.max()}; 0 to "
            f"{classes - 1} are expected, or {classes} for no label."
        )
