"""Classifier-free guidance (Ho & Salimans 2022) of class-conditional levels.

    levels = [
        NoisePredictor(Guided(network, scale=scale, null=10), process, "v")
        for network, scale in zip(networks, [1.5, 3.0])
    ]
    diffeqsolve(sampling_terms(*levels), solver, ..., args=labels)  # one label per image of the batch

Both branches are inside one level: they share its coins, and are one batched call of its network.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, ArrayLike, Float, PyTree

from ..._custom_types import RealScalarLike


class Guided(eqx.Module):
    """A conditional network `(x, conditioning, label)` with guidance: `u + scale (c - u)`, for its outputs `c` with
    the label and `u` with `null` in the label's place.

    For [`mlem_jax.diffusion.NoisePredictor`][], whatever the network predicts: all predictions are linear in the
    noise, so guiding any of them is guiding the noise. The label comes from the `args` of the solve, as an
    array or PyTree whose leaves are what the network takes: for one image (under `vmap`, one label per
    trajectory) or for a batch of them.

    **Arguments:**

    - `network`: a callable `(x, conditioning, label)`. It is `vmap`ped over the label and `null`, so that whatever
        does not depend on the label is computed once.
    - `scale`: 1 for the conditional network as it is, 0 for the unconditional one, more than 1 to guide
        (`1 + w` in Ho & Salimans). Each level may have its own.
    - `null`: the label that stood for "no label" in training, such as the number of classes; with the structure
        of a label and shapes that broadcast to it.

    Raises, when called, `ValueError` for a missing label or one of another structure than `null`.
    """

    network: Callable[..., Array]
    scale: RealScalarLike
    null: PyTree

    def __call__(
        self, x: Float[Array, "..."], conditioning: Float[Array, "..."], label: PyTree = None
    ) -> Float[Array, "..."]:
        if label is None:
            raise ValueError(
                "A guided level needs a label and was given none. Write diffrax.diffeqsolve(..., args=labels), "
                "with one label per image."
            )
        if jtu.tree_structure(label) != jtu.tree_structure(self.null):
            raise ValueError(
                f"A guided level was given a label of structure {jtu.tree_structure(label)}, but null="
                f"{self.null!r} has {jtu.tree_structure(self.null)}. Both must be what the network takes."
            )

        given, without = _branches(self.network, x, conditioning, label, self.null)
        return without + self.scale * (given - without)


def _branches(
    network: Callable[..., Array], x: Array, conditioning: Array, label: PyTree, null: PyTree
) -> Float[Array, "two ..."]:
    """The network's outputs with a label and with another, as one batched call."""

    def pair(given: ArrayLike, null: ArrayLike) -> Array:
        given = jnp.asarray(given)
        return jnp.stack([given, jnp.broadcast_to(jnp.asarray(null, given.dtype), given.shape)])

    labels = jtu.tree_map(pair, label, null)
    return jax.vmap(lambda label: network(x, conditioning, label))(labels)


class GuidedLabel(NamedTuple):
    """What a [`mlem_jax.diffusion.GuidedEach`][] level takes as its label; with a leading axis, what all samples take.

    - `label`: what is wanted.
    - `scale`: how strongly, see [`mlem_jax.diffusion.Guided`][].
    - `away`: what is steered away from: the label for "no label", or any other, a negative one.
    """

    label: PyTree
    scale: ArrayLike
    away: PyTree


class GuidedEach(eqx.Module):
    """A conditional network with guidance whose scale and negative label are each sample's own.

    !!! example

        ```python
        level = NoisePredictor(GuidedEach(network), process, "eps")
        labels = GuidedLabel(jnp.arange(n) % 10, jnp.linspace(1.0, 5.0, n), jnp.full(n, 10))
        ladder = PredictorLadder([level], labels=labels)  # calibrated for such labels
        sample(ladder, n=n, labels=labels, plan=plan, key=key)
        ```

    **Arguments:** `network`, as for [`mlem_jax.diffusion.Guided`][].

    Raises, when called, `ValueError` for a label that is not a [`mlem_jax.diffusion.GuidedLabel`][].
    """

    network: Callable[..., Array]

    def __call__(
        self, x: Float[Array, "..."], conditioning: Float[Array, "..."], label: PyTree = None
    ) -> Float[Array, "..."]:
        if not isinstance(label, GuidedLabel):
            raise ValueError(
                f"A level with GuidedEach needs a GuidedLabel(label, scale, away) and was given "
                f"{'no label' if label is None else type(label).__name__}."
            )
        given, without = _branches(self.network, x, conditioning, label.label, label.away)
        scale = jnp.asarray(label.scale, x.dtype)
        # One scale for each image of a batch.
        return without + scale.reshape(*scale.shape, *[1] * (x.ndim - scale.ndim)) * (given - without)
