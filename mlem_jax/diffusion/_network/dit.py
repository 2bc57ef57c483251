"""A transformer on patches, scaled by one number: the DiT of Peebles & Xie 2023, with RMS norms.

To add a network of another kind, copy this file and add a level to `_ladder/level.py`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .attention import Attention
from .checks import check_call, check_integers
from .embedding import Embedding
from .folding import depth_to_space, space_to_depth
from .input_skip import InputSkip, needs_input_skip
from .linear import Linear
from .network import AbstractNetwork
from .norm import rms_norm

_EXPANSION = 4


class DiTBlock(eqx.Module):
    """Attention and a dense network, each scaled, shifted and gated by the embedding (Peebles & Xie 2023,
    figure 3, "adaLN-Zero")."""

    attention: Attention
    grow: Linear
    shrink: Linear
    modulation: Linear

    def __init__(self, width: int, heads: int, *, key: PRNGKeyArray):
        key1, key2, key3, key4 = jr.split(key, 4)
        self.attention = Attention(width, heads, key=key1)
        self.grow = Linear(width, _EXPANSION * width, key=key2)
        self.shrink = Linear(_EXPANSION * width, width, key=key3)
        # Zero scale closes both gates: at initialisation the block is the identity.
        self.modulation = Linear(width, 6 * width, scale=0.0, key=key4)

    def __call__(self, x: Float[Array, "n places c"], embedding: Float[Array, "m c"]) -> Array:
        modulation = self.modulation(embedding)[:, None, :]
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=-1)
        x = x + gate1 * self.attention(rms_norm(x) * (1 + scale1) + shift1)
        hidden = jax.nn.gelu(self.grow(rms_norm(x) * (1 + scale2) + shift2))
        return x + gate2 * self.shrink(hidden)


def check_dit_sizes(
    shape: tuple[int, ...], width: int, patch: int, depth: int, heads: int, classes: int | None = None
) -> None:
    """Raises `ValueError` unless a [`mlem_jax.diffusion.DiT`][] can be built with these arguments."""
    check_integers("DiT", width=width, patch=patch, depth=depth, heads=heads)
    if classes is not None:
        check_integers("DiT", classes=classes)
    integers = all(isinstance(n, int) and n > 0 for n in shape)
    if len(shape) != 3 or not integers:
        raise ValueError(f"DiT was given shape={shape}; (height, width, channels) is expected.")
    if shape[0] % patch or shape[1] % patch:
        raise ValueError(
            f"DiT was given images of {shape[0]} x {shape[1]} with patch={patch}, which needs sides that are "
            f"multiples of {patch}. Use another patch or resize the images."
        )
    if width % heads:
        raise ValueError(
            f"DiT was given width={width} with heads={heads}; a width that is a multiple of heads is expected, for "
            f"example {heads * max(1, round(width / heads))}."
        )


class DiT(AbstractNetwork):
    """A transformer on the patches of an image, `(x, noise_level, label=None) -> array of x's shape`.

    **Arguments:**

    - `shape`: `(height, width, channels)` of one image.
    - `width`: channels of a patch's vector; the one number that scales the network (its parameters and, but
        for the attention between the patches, its FLOPs grow as `width**2`).
    - `patch`: side of a patch in pixels; all its pixels become one vector.
    - `depth`: number of blocks.
    - `heads`: of the attention in each block.
    - `classes`: how many labels the network tells apart; by default it takes no label. Label number
        `classes` stands for "no label": `Guided(network, scale, null=classes)`.
    - `input_skip`: whether an [`mlem_jax.diffusion.InputSkip`][] leads from the input to the output; by default
        where `width` is at most `channels * patch**2`, see [`mlem_jax.diffusion.UNet`][].
    - `key`: keyword-only random key for the initial parameters.

    Where a patch is in the image is told by learned vectors, one per patch. The initial output is 0.

    Raises `ValueError` if the sides are no multiples of `patch`, `width` none of `heads`, or a number is not
    a positive integer.

    Called like [`mlem_jax.diffusion.UNet`][].
    """

    stem: Linear
    positions: Float[Array, "places c"]
    embedding: Embedding
    blocks: list[DiTBlock]
    modulation: Linear
    head: Linear
    input_skip: InputSkip | None
    shape: tuple[int, int, int] = eqx.field(static=True)
    patch: int = eqx.field(static=True)
    classes: int | None = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: int,
        *,
        patch: int = 4,
        depth: int = 4,
        heads: int = 4,
        classes: int | None = None,
        input_skip: bool | None = None,
        key: PRNGKeyArray,
    ):
        check_dit_sizes(shape, width, patch, depth, heads, classes)
        height, breadth, channels = shape
        pixels = channels * patch**2
        stem, positions, embed1, embed2, labels, modulation, head, *blocks = jr.split(key, 7 + depth)
        self.shape, self.patch, self.classes = shape, patch, classes
        self.stem = Linear(pixels, width, key=stem)
        self.positions = 0.02 * jr.normal(positions, (height // patch * (breadth // patch), width))
        self.embedding = Embedding(width, classes, keys=(embed1, embed2, labels))
        self.blocks = [DiTBlock(width, heads, key=k) for k in blocks]
        self.modulation = Linear(width, 2 * width, scale=0.0, key=modulation)
        self.head = Linear(width, pixels, scale=0.0, key=head)
        if input_skip is None:
            input_skip = needs_input_skip(width, channels, patch)
        # Its weights begin at 0, so any key will do.
        self.input_skip = InputSkip(channels, patch, width, key=head) if input_skip else None

    def __call__(
        self, x: Float[Array, "*n h w c"], noise_level: Float[Array, "*m"], label: ArrayLike | None = None
    ) -> Float[Array, "*n h w c"]:
        check_call(self, x, noise_level, label)
        embedding = self.embedding(noise_level, label, x.dtype)
        images = x.reshape(-1, *self.shape)
        patches = space_to_depth(images, self.patch)
        n, rows, columns, pixels = patches.shape
        hidden = self.stem(patches.reshape(n, rows * columns, pixels)) + self.positions[None]
        for block in self.blocks:
            hidden = block(hidden, embedding)
        shift, scale = jnp.split(self.modulation(embedding)[:, None, :], 2, axis=-1)
        out = self.head(rms_norm(hidden) * (1 + scale) + shift)
        out = depth_to_space(out.reshape(patches.shape), self.patch)
        if self.input_skip is not None:
            out = out + self.input_skip(images, embedding)
        return out.reshape(x.shape)
