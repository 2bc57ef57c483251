"""A UNet on channels-last images, fast on a CPU and scaled by one number.

Convolutions run on NHWC arrays, normalisation is RMS over the channel axis, and the input is folded
space-to-depth. Training and checkpoints are elsewhere.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

_NUM_FREQUENCIES = 8


def _space_to_depth(x: Float[Array, "n h w c"], factor: int) -> Float[Array, "n h2 w2 c2"]:
    n, h, w, c = x.shape
    x = x.reshape(n, h // factor, factor, w // factor, factor, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h // factor, w // factor, factor**2 * c)


def _depth_to_space(x: Float[Array, "n h w c"], factor: int) -> Float[Array, "n h2 w2 c2"]:
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, factor, factor, c // factor**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h * factor, w * factor, c // factor**2)


class Conv(eqx.Module):
    """A `size` x `size` convolution, stride 1, zero padding, on `(n, h, w, channels)` arrays.

    With `unfold=True` as one matrix product over the gathered neighbourhoods: on a CPU a third faster
    where the image is small and the channels are few, slower elsewhere.
    """

    weight: Float[Array, "size size c_in c_out"]
    bias: Float[Array, " c_out"]
    unfold: bool = eqx.field(static=True)

    def __init__(
        self,
        c_in: int,
        c_out: int,
        size: int = 3,
        *,
        scale: float = 1.0,
        unfold: bool = False,
        key: PRNGKeyArray,
    ):
        fan_in = size * size * c_in
        self.weight = scale / math.sqrt(fan_in) * jr.normal(key, (size, size, c_in, c_out))
        self.bias = jnp.zeros(c_out)
        self.unfold = unfold

    def __call__(self, x: Float[Array, "n h w c_in"]) -> Float[Array, "n h w c_out"]:
        size = self.weight.shape[0]
        bias = self.bias[None, None, None, :]
        if size == 1:
            return x @ self.weight[0, 0] + bias
        if self.unfold:
            _, h, w, _ = x.shape
            below = size // 2
            padded = jnp.pad(x, ((0, 0), (below, below), (below, below), (0, 0)))
            shifts = [padded[:, i : i + h, j : j + w] for i in range(size) for j in range(size)]
            kernel = self.weight.reshape(-1, self.weight.shape[-1])
            return jnp.concatenate(shifts, axis=-1) @ kernel + bias
        out = jax.lax.conv_general_dilated(
            x, self.weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return out + bias


class Linear(eqx.Module):
    """A dense layer."""

    weight: Float[Array, "c_in c_out"]
    bias: Float[Array, " c_out"]

    def __init__(self, c_in: int, c_out: int, *, scale: float = 1.0, key: PRNGKeyArray):
        self.weight = scale / math.sqrt(c_in) * jr.normal(key, (c_in, c_out))
        self.bias = jnp.zeros(c_out)

    def __call__(self, x: Float[Array, "n c_in"]) -> Float[Array, "n c_out"]:
        return x @ self.weight + self.bias[None, :]


def _rms_norm(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


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
        hidden = self.conv1(jax.nn.silu(_rms_norm(x)))
        hidden = _rms_norm(hidden) * (1 + scale) + shift
        return x + self.conv2(jax.nn.silu(hidden))


def check_sizes(
    shape: tuple[int, ...],
    width: int,
    folds: tuple[int, ...],
    multipliers: tuple[int, ...],
    blocks: tuple[int, ...],
) -> None:
    """Raises `ValueError` unless a [`mlem_jax.diffusion.UNet`][] can be built with these arguments."""
    if not isinstance(width, int) or width < 1:
        raise ValueError(f"UNet was given width={width!r}; a positive integer is expected.")
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
    height, breadth, fold = *shape[:2], math.prod(folds)
    if height % fold or breadth % fold:
        raise ValueError(
            f"UNet was given images of {height} x {breadth} with folds={folds}, which needs sides "
            f"that are multiples of {fold}. Use smaller folds or resize the images."
        )


class UNet(eqx.Module):
    """A UNet `(x, noise_level) -> array of x's shape` on channels-last images.

    **Arguments:**

    - `shape`: `(height, width, channels)` of one image.
    - `width`: channels at the first resolution; the one number that scales the network (its
        FLOPs and parameters grow as `width**2`).
    - `folds`: how many pixels, per side, are folded into channels on the way to each resolution:
        `(2, 2)` works on a half and a quarter of the image's side, `(4,)` on a quarter only. A
        resolution of 1 x 1 is a dense network, which is the cheapest level there is.
    - `multipliers`: channels at each resolution, in units of `width`.
    - `blocks`: residual blocks at each resolution on the way down and again on the way up.
    - `key`: keyword-only random key for the initial parameters.

    Raises `ValueError` if the image cannot be folded that way, the lengths differ or a number is not a
    positive integer (`blocks` may be 0).

    The module takes one image `(h, w, c)` with a scalar `noise_level`, or a batch `(n, h, w, c)` with
    a scalar or `(n,)` `noise_level`; it may also be `vmap`ed, at no cost. `noise_level` is the natural
    logarithm of `sigma / alpha`.
    """

    stem: Conv
    embed1: Linear
    embed2: Linear
    down: list[list[ResidualBlock]]
    shrink: list[Conv]
    grow: list[Conv]
    up: list[list[ResidualBlock]]
    head: Conv
    shape: tuple[int, int, int] = eqx.field(static=True)
    folds: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: int,
        *,
        folds: tuple[int, ...] = (2, 2),
        multipliers: tuple[int, ...] = (1, 2),
        blocks: tuple[int, ...] = (1, 2),
        key: PRNGKeyArray,
    ):
        check_sizes(shape, width, folds, multipliers, blocks)
        height, breadth, channels = shape
        widths = [width * m for m in multipliers]
        embedding = 2 * width
        grids = [max(height, breadth) // math.prod(folds[: i + 1]) for i in range(len(folds))]
        # A 3 x 3 kernel on a 1 x 1 grid would multiply zeros.
        sizes = [1 if grid == 1 else 3 for grid in grids]
        unfold = [grid <= 8 and w <= 96 for grid, w in zip(grids, widths, strict=True)]
        keys = iter(jr.split(key, 2 + 2 * sum(blocks) + 2 * len(folds) + 2))

        def stack(i: int) -> list[ResidualBlock]:
            return [
                ResidualBlock(widths[i], embedding, sizes[i], unfold=unfold[i], key=next(keys))
                for _ in range(blocks[i])
            ]

        self.shape, self.folds = shape, folds
        self.embed1 = Linear(2 * _NUM_FREQUENCIES, embedding, key=next(keys))
        self.embed2 = Linear(embedding, embedding, key=next(keys))
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

    def __call__(
        self, x: Float[Array, "*n h w c"], noise_level: Float[Array, "*m"]
    ) -> Float[Array, "*n h w c"]:
        if x.shape[-3:] != self.shape:
            raise ValueError(
                f"This UNet was built for images of shape {self.shape} (height, width, channels) "
                f"and was given an array of shape {x.shape}."
            )
        count = math.prod(x.shape[:-3])
        if jnp.shape(noise_level) not in ((), (count,) if x.ndim > 3 else ()):
            raise ValueError(
                f"This UNet was given images of shape {x.shape} with noise levels of shape "
                f"{jnp.shape(noise_level)}; one for all, shape (), or one per image of a batch is expected."
            )
        hidden = _space_to_depth(x.reshape(-1, *self.shape), self.folds[0])
        frequencies = 2.0 ** jnp.linspace(-3.0, 2.0, _NUM_FREQUENCIES, dtype=x.dtype)
        angles = jnp.reshape(noise_level, (-1, 1)).astype(x.dtype) * frequencies[None, :]
        embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        embedding = jax.nn.silu(self.embed2(jax.nn.silu(self.embed1(embedding))))

        hidden = self.stem(hidden)
        skips = []
        for i, blocks in enumerate(self.down):
            for block in blocks:
                hidden = block(hidden, embedding)
            if i < len(self.shrink):
                skips.append(hidden)
                hidden = self.shrink[i](_space_to_depth(hidden, self.folds[i + 1]))
        for i, blocks in reversed(list(enumerate(self.up))):
            if i < len(self.grow):
                hidden = _depth_to_space(self.grow[i](hidden), self.folds[i + 1]) + skips.pop()
            for block in blocks:
                hidden = block(hidden, embedding)
        out = self.head(jax.nn.silu(_rms_norm(hidden)))
        return _depth_to_space(out, self.folds[0]).reshape(x.shape)
