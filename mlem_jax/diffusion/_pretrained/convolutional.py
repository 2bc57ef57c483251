"""The blocks of diffusers' convolutional networks, `UNet2DModel` and the decoder of `AutoencoderKL`.

Fields have the names of the checkpoints, so that one can be read beside the other.
"""

import dataclasses
from collections.abc import Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .parameters import attend, Convolution, Dense, GroupNorm, Scope

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "mish": jax.nn.mish,
}


@dataclasses.dataclass(frozen=True)
class BlockSettings:
    """What all blocks of one network have in common. `embedding`: size of the embedding of time and label, or `None`;
    `scale_shift`: whether it scales and shifts after the second norm, or is added before it."""

    embedding: int | None
    groups: int
    epsilon: float | int
    activation: str
    scale_shift: bool = False


def average_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Means over 2 x 2 squares; an odd last row or column is dropped."""
    n, h, w, c = x.shape
    squares = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    return jnp.mean(squares, axis=(2, 4))


def double(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Every pixel as a square of 2 x 2."""
    n, h, w, c = x.shape
    squares = jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c))
    return squares.reshape(n, 2 * h, 2 * w, c)


class ResidualBlock(eqx.Module):
    """Two convolutions beside a short cut; the embedding enters between them. `resize`: by what the image is scaled
    before the first one, "up", "down" or "keep"."""

    norm1: GroupNorm
    conv1: Convolution
    time_emb_proj: Dense | None
    norm2: GroupNorm
    conv2: Convolution
    conv_shortcut: Convolution | None
    settings: BlockSettings = eqx.field(static=True)
    resize: str = eqx.field(static=True)
    divisor: float | int = eqx.field(static=True)

    def __init__(
        self,
        scope: Scope,
        c_in: int,
        c_out: int,
        settings: BlockSettings,
        *,
        resize: str = "keep",
        divisor: float | int = 1.0,
    ):
        self.norm1 = GroupNorm(scope / "norm1", c_in, settings.groups, settings.epsilon)
        self.conv1 = Convolution(scope / "conv1", c_in, c_out)
        size = settings.embedding
        width = 2 * c_out if settings.scale_shift else c_out
        self.time_emb_proj = None if size is None else Dense(scope / "time_emb_proj", size, width)
        self.norm2 = GroupNorm(scope / "norm2", c_out, settings.groups, settings.epsilon)
        self.conv2 = Convolution(scope / "conv2", c_out, c_out)
        self.conv_shortcut = None if c_in == c_out else Convolution(scope / "conv_shortcut", c_in, c_out, 1)
        self.settings, self.resize, self.divisor = settings, resize, divisor

    def __call__(
        self, x: Float[Array, "n h w c_in"], embedding: Float[Array, "n e"] | None
    ) -> Float[Array, "n h2 w2 c_out"]:
        activation = ACTIVATIONS[self.settings.activation]
        hidden = activation(self.norm1(x))
        if self.resize != "keep":
            resize = double if self.resize == "up" else average_pool
            x, hidden = resize(x), resize(hidden)
        hidden = self.conv1(hidden)
        if self.time_emb_proj is None:
            hidden = self.norm2(hidden)
        else:
            assert embedding is not None
            projected = self.time_emb_proj(activation(embedding))[:, None, None, :]
            if self.settings.scale_shift:
                scale, shift = jnp.split(projected, 2, axis=-1)
                hidden = self.norm2(hidden) * (1 + scale) + shift
            else:
                hidden = self.norm2(hidden + projected)
        hidden = self.conv2(activation(hidden))
        short = x if self.conv_shortcut is None else self.conv_shortcut(x)
        out = short + hidden
        return out if self.divisor == 1 else out / self.divisor


class SpatialAttention(eqx.Module):
    """Self-attention over all pixels, with a norm before it and a short cut beside it."""

    group_norm: GroupNorm | None
    to_q: Dense
    to_k: Dense
    to_v: Dense
    to_out: Dense
    heads: int = eqx.field(static=True)
    divisor: float | int = eqx.field(static=True)

    def __init__(
        self,
        scope: Scope,
        channels: int,
        head_size: int | None,
        *,
        groups: int | None,
        epsilon: float,
        divisor: float | int = 1.0,
    ):
        size = head_size or channels
        self.heads = channels // size
        inner = self.heads * size
        self.group_norm = (
            None if groups is None else GroupNorm(scope / "group_norm", channels, groups, epsilon)
        )
        self.to_q = Dense(scope / "to_q", channels, inner)
        self.to_k = Dense(scope / "to_k", channels, inner)
        self.to_v = Dense(scope / "to_v", channels, inner)
        self.to_out = Dense(scope / "to_out" / 0, inner, channels)
        self.divisor = divisor

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        n, h, w, channels = x.shape
        places = x.reshape(n, h * w, channels)
        normed = places if self.group_norm is None else self.group_norm(places)
        query, key, value = (
            layer(normed).reshape(n, h * w, self.heads, -1) for layer in (self.to_q, self.to_k, self.to_v)
        )
        out = self.to_out(attend(query, key, value)).reshape(x.shape) + x
        return out if self.divisor == 1 else out / self.divisor


class Upsampler(eqx.Module):
    """Twice the size, then a convolution."""

    conv: Convolution

    def __init__(self, scope: Scope, channels: int):
        self.conv = Convolution(scope / "conv", channels, channels)

    def __call__(self, x: Float[Array, "n h w c"], embedding: object) -> Float[Array, "n h2 w2 c"]:
        del embedding
        return self.conv(double(x))


class Downsampler(eqx.Module):
    """A convolution of stride 2."""

    conv: Convolution

    def __init__(self, scope: Scope, channels: int, padding: int):
        # diffusers' convention: with 0, one row and column of zeros behind the image.
        both = (padding, padding) if padding else (0, 1)
        self.conv = Convolution(scope / "conv", channels, channels, stride=2, padding=both)

    def __call__(self, x: Float[Array, "n h w c"], embedding: object) -> Float[Array, "n h2 w2 c"]:
        del embedding
        return self.conv(x)


class MiddleBlock(eqx.Module):
    """Two residual blocks at the lowest resolution, with attention between them."""

    resnets: list[ResidualBlock]
    attentions: list[SpatialAttention]

    def __init__(
        self,
        scope: Scope,
        channels: int,
        settings: BlockSettings,
        *,
        head_size: int | None,
        attention: bool = True,
        attention_groups: int | None,
        divisor: float | int = 1.0,
    ):
        self.resnets = [
            ResidualBlock(scope / "resnets" / i, channels, channels, settings, divisor=divisor)
            for i in (0, 1)
        ]
        self.attentions = []
        if attention:
            self.attentions = [
                SpatialAttention(
                    scope / "attentions" / 0,
                    channels,
                    head_size,
                    groups=attention_groups,
                    epsilon=settings.epsilon,
                    divisor=divisor,
                )
            ]

    def __call__(
        self, x: Float[Array, "n h w c"], embedding: Float[Array, "n e"] | None
    ) -> Float[Array, "n h w c"]:
        x = self.resnets[0](x, embedding)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x, embedding)


# Of attention, before diffusers 0.15.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def modern_names(names: Iterable[str]) -> dict[str, str | None]:
    """What attention's arrays are called today, by what older versions of diffusers called them."""
    renamed: dict[str, str | None] = {}
    for name in names:
        parts = name.split(".")
        if "attentions" in parts and parts[-2] in _OLD_NAMES:
            renamed[name] = ".".join([*parts[:-2], _OLD_NAMES[parts[-2]], parts[-1]])
    return renamed
