"""What the pretrained networks share: how they are called, and drawn at random."""

import dataclasses
from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from .._network import AbstractNetwork, check_call


class AbstractPretrained(AbstractNetwork):
    """A network of an architecture that others have trained, `(x, conditioning, label) -> array of x's shape`.

    Unlike the networks that this library trains it is told of the noise what its authors told it, such as a number of
    steps; the [`mlem_jax.diffusion.NoisePredictor`][] that [`mlem_jax.diffusion.load_network`][] returns sees to
    that. Arrays are channels-last; the output has the type of `x`.

    - `dtype`: in which it computes.
    - `null`: the label that stands for "no label", or `None` if there is none.
    """

    dtype: eqx.AbstractVar[jnp.dtype]

    @property
    @abstractmethod
    def null(self) -> int | None:
        """The label that stands for "no label"."""

    @abstractmethod
    def evaluate(
        self, x: Float[Array, "n h w c"], conditioning: Float[Array, " n"], label: Array | None
    ) -> Float[Array, "n h w c"]:
        """The output for a batch, with one float32 number and perhaps one label for each image."""

    def __call__(
        self, x: Float[Array, "*n h w c"], noise_level: Float[Array, "*m"], label: ArrayLike | None = None
    ) -> Float[Array, "*n h w c"]:
        check_call(self, x, noise_level, label)
        if self.null is None and self.classes is not None and not isinstance(label, Tracer):
            check_labels(type(self).__name__, np.asarray(label), self.classes)
        batch = x.reshape(-1, *self.shape)
        n = batch.shape[0]
        conditioning = jnp.broadcast_to(jnp.asarray(noise_level, jnp.float32), (n,))
        labels = None if label is None else jnp.broadcast_to(jnp.asarray(label), (n,))
        return self.evaluate(batch, conditioning, labels).astype(x.dtype).reshape(x.shape)


def check_labels(name: str, labels: np.ndarray, classes: int) -> None:
    """Raises `ValueError` unless all labels are below `classes`, for networks without a label for "no label"."""
    if labels.size and labels.max() >= classes:
        raise ValueError(
            f"{name} with a table of {classes} labels was given labels up to {labels.max()}; 0 to {classes - 1} "
            "are expected."
        )


def as_tuple(value: Any) -> Any:
    """Lists as tuples, so that what a JSON file said can be hashed."""
    return tuple(map(as_tuple, value)) if isinstance(value, list | tuple) else value


def read_settings(kind: type, table: dict[str, Any], *, name: str, ignored: tuple[str, ...]) -> Any:
    """The dataclass `kind` filled from a configuration's table. Entries that begin with an underscore and those
    `ignored`, which do not change what the network computes, are left out.

    Raises `ValueError` naming the entries that are not known, or what the dataclass finds wrong."""
    fields = {field.name for field in dataclasses.fields(kind)}
    given = {k: as_tuple(v) for k, v in table.items() if not k.startswith("_") and k not in ignored}
    unknown = sorted(set(given) - fields)
    if unknown:
        raise ValueError(
            f"The configuration has {', '.join(unknown)}, which this library's {name} does not know; it may be "
            "another architecture, or a newer one."
        )
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"The configuration does not describe a {name}: {error}.") from None
