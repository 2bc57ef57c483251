"""A UNet on channels-last images, fast on a CPU and scaled by one number.

Convolutions run on NHWC arrays, normalisation is RMS over the channel axis, and the input is folded
space-to-depth.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .attention import Attention
from .checks import check_call, check_integers
from .conv import Conv
from .embedding import Embedding
from .folding import depth_to_space, space_to_depth
from .input_skip import InputSkip, needs_input_skip
from .linear import Linear
from .network import AbstractNetwork
from .norm import rms_norm

# Channels of a head of attention, where the channels are a multiple of it.
_HEAD = 32


class ResidualBlock(eqx.Module):
    """Norm, convolution, noise-level modulation, norm, convolution, added to the input."""

    conv1: Conv
    conv2: Conv
    modulation: Linear

    def __init__(
        self,
        channels: int,
        embedding: int,
        size: int = 3,
        *,
        unfold: bool = False,
        key: PRNGKeyArray,
    ):
        key1, key2, key3 = jr.split(key, 3)
        self.conv1 = Conv(channels, channels, size, unfold=unfold, key=key1)
        # Zero scale: at initialisation the block is the identity.
        self.conv2 = Conv(channels, channels, size, scale=0.0, unfold=unfold, key=key2)
        self.modulation = Linear(embedding, 2 * channels, scale=0.1, key=key3)

    def __call__(self, x: Float[Array, "n h w c"], embedding: Float[Array, "m e"]) -> Float[Array, "n h w c"]:
        scale, shift = jnp.split(self.modulation(embedding)[:, None, None, :], 2, axis=-1)
        hidden = self.conv1(jax.nn.silu(rms_norm(x)))
        hidden = rms_norm(hidden) * (1 + scale) + shift
        return x + self.conv2(jax.nn.silu(hidden))


class AttentionBlock(eqx.Module):
    """Norm and self-attention between all places of the image, added to the input."""

    attention: Attention

    def __init__(self, channels: int, *, key: PRNGKeyArray):
        heads = channels // _HEAD if channels % _HEAD == 0 else 1
        # Zero scale: at initialisation the block is the identity.
        self.attention = Attention(channels, heads, scale=0.0, key=key)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        n, h, w, c = x.shape
        return x + self.attention(rms_norm(x).reshape(n, h * w, c)).reshape(x.shape)


def check_sizes(
    shape: tuple[int, ...],
    width: int,
    folds: tuple[int, ...],
    multipliers: tuple[int, ...],
    blocks: tuple[int, ...],
    attention: tuple[bool, ...] | None = None,
    classes: int | None = None,
) -> None:
    """Raises `ValueError` unless a [`mlem_jax.diffusion.UNet`][] can be built with these arguments."""
    check_integers("UNet", width=width)
    if classes is not None:
        check_integers("UNet", classes=classes)
    entries = {"shape": shape, "folds": folds, "multipliers": multipliers, "blocks": blocks}
    for name, values in entries.items():
        least = 0 if name == "blocks" else 1
        if not isinstance(values, tuple) or not all(isinstance(n, int) and n >= least for n in values):
            raise ValueError(
                f"UNet was given {name}={values!r}; a list of integers of at least {least} is expected."
            )
    if len(shape) != 3:
        raise ValueError(f"UNet was given shape={shape}; (height, width, channels) is expected.")
    if not len(folds) == len(multipliers) == len(blocks) > 0:
        raise ValueError(
            "UNet needs one entry per resolution in folds, multipliers and blocks, and was given "
            f"folds={folds}, multipliers={multipliers}, blocks={blocks}."
        )
    if attention is not None:
        booleans = isinstance(attention, tuple) and all(isinstance(flag, bool) for flag in attention)
        if not booleans or len(attention) != len(folds):
            raise ValueError(
                f"UNet was given attention={attention!r} for {len(folds)} resolutions; true or false for each is "
                f"expected, for example {[False] * (len(folds) - 1) + [True]}."
            )
    height, breadth, fold = *shape[:2], math.prod(folds)
    if height % fold or breadth % fold:
        raise ValueError(
            f"UNet was given images of {height} x {breadth} with folds={folds}, which needs sides "
            f"that are multiples of {fold}. Use smaller folds or resize the images."
        )


class UNet(AbstractNetwork):
    """A UNet `(x, noise_level, label=None) -> array of x's shape` on channels-last images.

    **Arguments:**

    - `shape`: `(height, width, channels)` of one image.
    - `width`: channels at the first resolution; the one number that scales the network (its
        FLOPs and parameters grow as `width**2`).
    - `folds`: how many pixels, per side, are folded into channels on the way to each resolution:
        `(2, 2)` works on a half and a quarter of the image's side, `(4,)` on a quarter only. A
        resolution of 1 x 1 is a dense network, which is the cheapest level there is.
    - `multipliers`: channels at each resolution, in units of `width`.
    - `blocks`: residual blocks at each resolution on the way down and again on the way up.
    - `attention`: for each resolution, whether its residual blocks are followed by one of self-attention
        between all places (on the way down and again on the way up), which costs the square of their number;
        by default none.
    - `classes`: how many labels the network tells apart; by default it takes no label. Label number
        `classes` stands for "no label": `Guided(network, scale, null=classes)`.
    - `input_skip`: whether an [`mlem_jax.diffusion.InputSkip`][] leads from the input to the output; by default
        where `width` is at most `channels * folds[0]**2`, without which such a network could not represent an
        image. `False` is for networks that were trained without it.
    - `key`: keyword-only random key for the initial parameters.

    Raises `ValueError` if the image cannot be folded that way, the lengths differ or a number is not a
    positive integer (`blocks` may be 0).

    The module takes one image `(h, w, c)` with a scalar `noise_level`, or a batch `(n, h, w, c)` with
    a scalar or `(n,)` `noise_level`, and likewise an integer `label` if it has classes; it may also be
    `vmap`ed, at no cost. `noise_level` is the natural logarithm of `sigma / alpha`.
    """

    stem: Conv
    embedding: Embedding
    down: list[list[ResidualBlock]]
    shrink: list[Conv]
    grow: list[Conv]
    up: list[list[ResidualBlock]]
    head: Conv
    # One for the way down and one for the way up at each resolution, or None.
    attend: list[tuple[AttentionBlock, AttentionBlock] | None]
    input_skip: InputSkip | None
    shape: tuple[int, int, int] = eqx.field(static=True)
    folds: tuple[int, ...] = eqx.field(static=True)
    classes: int | None = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: int,
        *,
        folds: tuple[int, ...] = (2, 2),
        multipliers: tuple[int, ...] = (1, 2),
        blocks: tuple[int, ...] = (1, 2),
        attention: tuple[bool, ...] | None = None,
        classes: int | None = None,
        input_skip: bool | None = None,
        key: PRNGKeyArray,
    ):
        check_sizes(shape, width, folds, multipliers, blocks, attention, classes)
        height, breadth, channels = shape
        widths = [width * m for m in multipliers]
        embedding = 2 * width
        grids = [max(height, breadth) // math.prod(folds[: i + 1]) for i in range(len(folds))]
        # A 3 x 3 kernel on a 1 x 1 grid would multiply zeros.
        sizes = [1 if grid == 1 else 3 for grid in grids]
        unfold = [grid <= 8 and w <= 96 for grid, w in zip(grids, widths, strict=True)]
        count = 2 + 2 * sum(blocks) + 2 * len(folds) + 2
        keys = iter(jr.split(key, count))
        # Apart, so that the other parameters do not depend on whether there are labels or attention.
        label_key, *attention_keys = jr.split(jr.fold_in(key, count), 1 + 2 * len(folds))

        def stack(i: int) -> list[ResidualBlock]:
            return [
                ResidualBlock(widths[i], embedding, sizes[i], unfold=unfold[i], key=next(keys))
                for _ in range(blocks[i])
            ]

        self.shape, self.folds, self.classes = shape, folds, classes
        self.embedding = Embedding(embedding, classes, keys=(next(keys), next(keys), label_key))
        self.stem = Conv(channels * folds[0] ** 2, widths[0], sizes[0], unfold=unfold[0], key=next(keys))
        self.down = [stack(i) for i in range(len(folds))]
        self.up = [stack(i) for i in range(len(folds))]
        self.shrink, self.grow = [], []
        for i, factor in enumerate(folds[1:]):
            folded = widths[i] * factor**2
            self.shrink.append(Conv(folded, widths[i + 1], 1, key=next(keys)))
            self.grow.append(Conv(widths[i + 1], folded, 1, key=next(keys)))
        self.head = Conv(
            widths[0], channels * folds[0] ** 2, sizes[0], scale=0.1, unfold=unfold[0], key=next(keys)
        )
        if input_skip is None:
            input_skip = needs_input_skip(width, channels, folds[0])
        # Its weights begin at 0: no key is needed, and the other parameters do not depend on it.
        self.input_skip = InputSkip(channels, folds[0], embedding, key=key) if input_skip else None
        self.attend = []
        for i, attends in enumerate(attention or (False,) * len(folds)):
            down, up = (AttentionBlock(widths[i], key=k) for k in attention_keys[2 * i : 2 * i + 2])
            self.attend.append((down, up) if attends else None)

    def __call__(
        self, x: Float[Array, "*n h w c"], noise_level: Float[Array, "*m"], label: ArrayLike | None = None
    ) -> Float[Array, "*n h w c"]:
        check_call(self, x, noise_level, label)
        images = x.reshape(-1, *self.shape)
        hidden = space_to_depth(images, self.folds[0])
        embedding = self.embedding(noise_level, label, x.dtype)

        hidden = self.stem(hidden)
        skips = []
        for i, blocks in enumerate(self.down):
            for block in blocks:
                hidden = block(hidden, embedding)
            if pair := self.attend[i]:
                hidden = pair[0](hidden)
            if i < len(self.shrink):
                skips.append(hidden)
                hidden = self.shrink[i](space_to_depth(hidden, self.folds[i + 1]))
        for i, blocks in reversed(list(enumerate(self.up))):
            if i < len(self.grow):
                hidden = depth_to_space(self.grow[i](hidden), self.folds[i + 1]) + skips.pop()
            for block in blocks:
                hidden = block(hidden, embedding)
            if pair := self.attend[i]:
                hidden = pair[1](hidden)
        out = depth_to_space(self.head(jax.nn.silu(rms_norm(hidden))), self.folds[0])
        if self.input_skip is not None:
            out = out + self.input_skip(images, embedding)
        return out.reshape(x.shape)
