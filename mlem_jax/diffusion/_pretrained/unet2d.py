"""diffusers' `UNet2DModel`, which its training scripts for unconditional and class-conditional images save."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from .convolutional import (
    Downsampler,
    MiddleBlock,
    modern_names,
    ResidualBlock,
    SpatialAttention,
    Upsampler,
)
from .family import Found, Source
from .network import AbstractPretrained
from .parameters import Convolution, Dense, GroupNorm, RandomParameters, Scope, sinusoids
from .schedule import read_scheduler
from .unet2d_config import UNet2DConfig

# Standard deviation of the frequencies of diffusers' `GaussianFourierProjection` in this network.
_FOURIER_SCALE = 16.0


class _Stage(eqx.Module):
    """The blocks at one resolution, then perhaps a change of it."""

    resnets: list[ResidualBlock]
    attentions: list[SpatialAttention]
    resampler: Downsampler | Upsampler | ResidualBlock | None

    def __init__(
        self,
        scope: Scope,
        channels: list[tuple[int, int]],
        config: UNet2DConfig,
        *,
        attention: bool,
        resample: str | None,
    ):
        """`channels` are those that go into and come out of each residual block; `resample` is "up", "down" or
        `None`."""
        width = channels[-1][1]
        settings = config.blocks
        self.resnets = [
            ResidualBlock(scope / "resnets" / i, c_in, c_out, settings)
            for i, (c_in, c_out) in enumerate(channels)
        ]
        self.attentions = [
            SpatialAttention(
                scope / "attentions" / i,
                width,
                config.attention_head_dim,
                groups=settings.groups,
                epsilon=settings.epsilon,
            )
            for i in range(len(channels) if attention else 0)
        ]
        self.resampler = None
        if resample == "down":
            inner = scope / "downsamplers" / 0
            # Only blocks with attention know the other kind.
            if attention and config.downsample_type == "resnet":
                self.resampler = ResidualBlock(inner, width, width, settings, resize="down")
            else:
                self.resampler = Downsampler(inner, width, config.downsample_padding)
        elif resample == "up":
            inner = scope / "upsamplers" / 0
            if attention and config.upsample_type == "resnet":
                self.resampler = ResidualBlock(inner, width, width, settings, resize="up")
            else:
                self.resampler = Upsampler(inner, width)

    def block(self, i: int, x: Float[Array, "n h w c"], embedding: Float[Array, "n e"]) -> Array:
        """Residual block number `i` and the attention behind it."""
        x = self.resnets[i](x, embedding)
        return self.attentions[i](x) if self.attentions else x


class UNet2D(AbstractPretrained):
    """diffusers' `UNet2DModel` on channels-last arrays, `(x, timestep, label=None) -> array of x's shape`.

    `timestep` is a number of steps, from 0 to 999 for most, fractions allowed; with
    `time_embedding_type = "fourier"` it is the noise's standard deviation. `label` is for networks with
    `num_class_embeds`; which one stands for "no label", if any, its training decided.

    Build it with [`mlem_jax.diffusion.load_network`][], or with random weights by `UNet2D.init(config, key=key)`.
    """

    time_frequencies: Float[Array, " f"] | None
    time_embedding: tuple[Dense, Dense]
    class_table: Float[Array, "rows e"] | None
    conv_in: Convolution
    down_blocks: list[_Stage]
    mid_block: MiddleBlock | None
    up_blocks: list[_Stage]
    conv_norm_out: GroupNorm
    conv_out: Convolution
    config: UNet2DConfig = eqx.field(static=True)
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(self, config: UNet2DConfig, scope: Scope):
        self.config, self.dtype = config, scope.dtype
        widths, settings = config.block_out_channels, config.blocks
        size = settings.embedding
        assert size is not None
        self.time_frequencies = None
        features = widths[0]
        if config.time_embedding_type == "fourier":
            self.time_frequencies = (scope / "time_proj")(
                "weight", (widths[0],), deviation=_FOURIER_SCALE, wide=True
            )
            features = 2 * widths[0]
        self.time_embedding = _two_layers(scope / "time_embedding", features, size)
        self.class_table = None
        if config.num_class_embeds is not None:
            rows = (config.num_class_embeds, size)
            self.class_table = (scope / "class_embedding")("weight", rows, deviation=1.0)
        self.conv_in = Convolution(scope / "conv_in", config.in_channels, widths[0])
        self.down_blocks = _down_stages(scope / "down_blocks", config)
        self.mid_block = None
        if config.mid_block_type is not None:
            groups = config.attn_norm_num_groups
            if groups is None and not settings.scale_shift:
                groups = settings.groups
            self.mid_block = MiddleBlock(
                scope / "mid_block",
                widths[-1],
                settings,
                head_size=config.attention_head_dim,
                attention=config.add_attention,
                attention_groups=groups,
                divisor=config.mid_block_scale_factor,
            )
        self.up_blocks = _up_stages(scope / "up_blocks", config)
        self.conv_norm_out = GroupNorm(scope / "conv_norm_out", widths[0], settings.groups, settings.epsilon)
        self.conv_out = Convolution(scope / "conv_out", widths[0], config.out_channels)

    @classmethod
    def init(cls, config: UNet2DConfig, *, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32) -> "UNet2D":
        """A network with random weights."""
        return cls(config, Scope(RandomParameters(key), dtype))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.config.shape

    @property
    def classes(self) -> int | None:
        return self.config.num_class_embeds

    @property
    def null(self) -> None:
        return None

    def evaluate(
        self, x: Float[Array, "n h w c"], conditioning: Float[Array, " n"], label: Array | None
    ) -> Float[Array, "n h w c"]:
        config = self.config
        x = x.astype(self.dtype)
        if config.center_input_sample:
            x = 2 * x - 1
        embedding = self._embedding(conditioning, label)
        x = self.conv_in(x)
        skips = [x]
        for stage in self.down_blocks:
            for i in range(len(stage.resnets)):
                x = stage.block(i, x, embedding)
                skips.append(x)
            if stage.resampler is not None:
                x = stage.resampler(x, embedding)
                skips.append(x)
        if self.mid_block is not None:
            x = self.mid_block(x, embedding)
        for stage in self.up_blocks:
            for i in range(len(stage.resnets)):
                x = stage.block(i, jnp.concatenate([x, skips.pop()], axis=-1), embedding)
            if stage.resampler is not None:
                x = stage.resampler(x, embedding)
        x = self.conv_out(jax.nn.silu(self.conv_norm_out(x)))
        if config.time_embedding_type == "fourier":
            x = x / conditioning.astype(x.dtype)[:, None, None, None]
        return x

    def _embedding(self, conditioning: Float[Array, " n"], label: Array | None) -> Float[Array, "n e"]:
        first, second = self.time_embedding
        embedding = second(jax.nn.silu(first(self._features(conditioning))))
        if self.class_table is not None:
            rows = self.class_table.at[label]
            embedding = embedding + rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return embedding

    def _features(self, conditioning: Float[Array, " n"]) -> Float[Array, "n f"]:
        config = self.config
        if self.time_frequencies is None:
            width = config.block_out_channels[0]
            shift, first = float(config.freq_shift), config.flip_sin_to_cos
            return sinusoids(conditioning, width, shift=shift, cosine_first=first).astype(self.dtype)
        angles = jnp.log(conditioning)[:, None] * self.time_frequencies[None, :] * (2 * math.pi)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(self.dtype)


_NAME = "UNet2DModel"


def find_unet2d(source: Source) -> Found:
    """A `UNet2DModel` that diffusers' `save_pretrained` wrote."""
    config = UNet2DConfig.read(source.require_config(_NAME))
    source.checkpoint.rename(modern_names(source.checkpoint.shapes))
    scheduler = source.scheduler
    if scheduler is None and config.time_embedding_type == "fourier":
        scheduler = {"_class_name": "ScoreSdeVeScheduler"}
    return Found(_NAME, functools.partial(UNet2D, config), read_scheduler(scheduler or {}))


def _two_layers(scope: Scope, c_in: int, size: int) -> tuple[Dense, Dense]:
    return Dense(scope / "linear_1", c_in, size), Dense(scope / "linear_2", size, size)


def _down_stages(scope: Scope, config: UNet2DConfig) -> list[_Stage]:
    widths = config.block_out_channels
    stages, c_in = [], widths[0]
    for i, (kind, width) in enumerate(zip(config.down_block_types, widths, strict=True)):
        channels = [(c_in, width)] + [(width, width)] * (config.layers_per_block - 1)
        resample = "down" if i < len(widths) - 1 else None
        stages.append(
            _Stage(scope / i, channels, config, attention=kind == "AttnDownBlock2D", resample=resample)
        )
        c_in = width
    return stages


def _up_stages(scope: Scope, config: UNet2DConfig) -> list[_Stage]:
    widths = config.block_out_channels
    # What the way down has left behind, in the order in which it is taken up again.
    skips = [widths[0]]
    for i, width in enumerate(widths):
        skips += [width] * (config.layers_per_block + (i < len(widths) - 1))
    stages, c_in = [], widths[-1]
    for i, (kind, width) in enumerate(zip(config.up_block_types, reversed(widths), strict=True)):
        channels = []
        for _ in range(config.layers_per_block + 1):
            channels.append((c_in + skips.pop(), width))
            c_in = width
        resample = "up" if i < len(widths) - 1 else None
        stages.append(
            _Stage(scope / i, channels, config, attention=kind == "AttnUpBlock2D", resample=resample)
        )
    return stages
