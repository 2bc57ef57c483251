"""The decoder of diffusers' `AutoencoderKL`, which turns latents into pictures."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from .convolutional import (
    ACTIVATIONS,
    BlockSettings,
    MiddleBlock,
    modern_names,
    ResidualBlock,
    Upsampler,
)
from .files import Checkpoint, read_json
from .network import read_settings
from .parameters import Convolution, GroupNorm, load_parameters, RandomParameters, Scope

_NAME = "AutoencoderKL"
_EPSILON = 1e-6
# Means and standard deviations of Stable Diffusion's latents with which EDM2 was trained, whose own deviation is 0.5
# (Karras et al. 2024, appendix A).
_EDM2_MEANS, _EDM2_DEVIATIONS, _EDM2_TARGET = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28), 0.5


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The entries of an `AutoencoderKL`'s `config.json` that decide what its decoder computes.

    - `scaling_factor`, `shift_factor`: latents of a sampler are `(z - shift) * scaling` of the decoder's.

    Raises `ValueError` for options that are not supported."""

    out_channels: int = 3
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float | int = 0.18215
    shift_factor: float | int | None = None
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self):
        others = sorted(set(self.up_block_types) - {"UpDecoderBlock2D"})
        if others:
            raise ValueError(
                f"The configuration has {', '.join(others)} among its up_block_types; supported is UpDecoderBlock2D."
            )
        if self.act_fn not in ACTIVATIONS:
            raise ValueError(
                f"The configuration has act_fn = {self.act_fn!r}; supported are {', '.join(ACTIVATIONS)}."
            )


class _Stage(eqx.Module):
    resnets: list[ResidualBlock]
    upsampler: Upsampler | None


class Decoder(eqx.Module):
    """Latents to pictures, `(*n, h, w, c) -> (*n, k h, k w, 3)`, `k` a power of 2, on channels-last arrays.

    Latents are those that a diffusion model samples: they are divided by `scale` and get `shift` first, per channel.

        decoder = load_decoder("sd-vae-ft-mse")
        images = jax.lax.map(decoder, samples.images)

    Build it with [`mlem_jax.diffusion.load_decoder`][], or with random weights by `Decoder.init(config, key=key)`.
    """

    scale: Float[Array, " c"]
    shift: Float[Array, " c"]
    post_quant_conv: Convolution | None
    conv_in: Convolution
    mid_block: MiddleBlock
    up_blocks: list[_Stage]
    conv_norm_out: GroupNorm
    conv_out: Convolution
    config: DecoderConfig = eqx.field(static=True)
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(self, config: DecoderConfig, scope: Scope):
        self.config, self.dtype = config, scope.dtype
        channels = config.latent_channels
        self.scale = jnp.full(channels, config.scaling_factor, jnp.float32)
        self.shift = jnp.full(channels, config.shift_factor or 0.0, jnp.float32)
        self.post_quant_conv = None
        if config.use_post_quant_conv:
            self.post_quant_conv = Convolution(scope / "post_quant_conv", channels, channels, 1)
        scope = scope / "decoder"
        widths = config.block_out_channels[::-1]
        settings = BlockSettings(None, config.norm_num_groups, _EPSILON, config.act_fn)
        self.conv_in = Convolution(scope / "conv_in", channels, widths[0])
        self.mid_block = MiddleBlock(
            scope / "mid_block",
            widths[0],
            settings,
            head_size=None,
            attention=config.mid_block_add_attention,
            attention_groups=config.norm_num_groups,
        )
        self.up_blocks, c_in = [], widths[0]
        for i, width in enumerate(widths):
            inner = scope / "up_blocks" / i
            resnets = []
            for j in range(config.layers_per_block + 1):
                resnets.append(ResidualBlock(inner / "resnets" / j, c_in, width, settings))
                c_in = width
            last = i == len(widths) - 1
            upsampler = None if last else Upsampler(inner / "upsamplers" / 0, width)
            self.up_blocks.append(_Stage(resnets, upsampler))
        self.conv_norm_out = GroupNorm(scope / "conv_norm_out", c_in, config.norm_num_groups, _EPSILON)
        self.conv_out = Convolution(scope / "conv_out", c_in, config.out_channels)

    @classmethod
    def init(cls, config: DecoderConfig, *, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32) -> "Decoder":
        """A decoder with random weights."""
        return cls(config, Scope(RandomParameters(key), dtype))

    def __call__(self, latents: Float[Array, "*n h w c"]) -> Float[Array, "*n h2 w2 c2"]:
        *batch, height, width, channels = latents.shape
        if channels != self.config.latent_channels:
            raise ValueError(
                f"This decoder takes latents of {self.config.latent_channels} channels and was given an array of "
                f"shape {latents.shape}; (..., height, width, {self.config.latent_channels}) is expected."
            )
        x = latents.reshape(-1, height, width, channels).astype(jnp.float32)
        x = (x / self.scale[None, None, None] + self.shift[None, None, None]).astype(self.dtype)
        if self.post_quant_conv is not None:
            x = self.post_quant_conv(x)
        x = self.mid_block(self.conv_in(x), None)
        for stage in self.up_blocks:
            for resnet in stage.resnets:
                x = resnet(x, None)
            if stage.upsampler is not None:
                x = stage.upsampler(x, None)
        x = self.conv_out(jax.nn.silu(self.conv_norm_out(x))).astype(latents.dtype)
        return x.reshape(*batch, *x.shape[1:])


def load_decoder(
    path: str | Path,
    *,
    dtype: DTypeLike = "float32",
    latents: Literal["scaled", "edm2"] | tuple[Sequence[float], Sequence[float]] = "scaled",
) -> Decoder:
    """The decoder of an `AutoencoderKL` that diffusers' `save_pretrained` wrote.

    **Arguments:**

    - `path`: its folder, or that of a pipeline with a folder `vae`.
    - `dtype`: in which it computes.
    - `latents`: how the sampler's latents were made of the autoencoder's: `"scaled"` as its configuration says,
        which is what DiT and SiT use; `"edm2"` as EDM2 standardises them; or `(means, deviations)`, one number for
        each channel, for latents `(z - mean) / deviation`.

    Raises as [`mlem_jax.diffusion.load_network`][] does.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype={dtype!r}; a floating type is expected, such as 'bfloat16'.")
    folder = Path(path)
    if (folder / "vae").is_dir():
        folder = folder / "vae"
    checkpoint = Checkpoint(folder)
    place = (folder if folder.is_dir() else folder.parent) / "config.json"
    if not place.is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json beside its weights, which an {_NAME} needs: copy it from where the "
            "weights come from."
        )
    table = read_json(place)
    if table.get("_class_name", _NAME) != _NAME:
        raise ValueError(f"{folder} holds a {table['_class_name']}; an {_NAME} is expected.")
    config = read_settings(DecoderConfig, table, name=_NAME, ignored=_ENCODER)
    names = checkpoint.shapes
    forgotten = {n: None for n in names if n.startswith(("encoder.", "quant_conv."))}
    checkpoint.rename({**modern_names(names), **forgotten})
    decoder = load_parameters(
        functools.partial(Decoder, config), checkpoint, "decoder of an AutoencoderKL", dtype
    )
    if latents == "scaled":
        return decoder
    means, deviations = _EDM2_LATENTS if latents == "edm2" else latents
    for numbers in (means, deviations):
        if len(numbers) != config.latent_channels:
            raise ValueError(
                f"latents={latents!r} has {len(numbers)} numbers for {config.latent_channels} channels of latents; "
                "one for each is expected."
            )
    scale, shift = 1 / jnp.asarray(deviations, jnp.float32), jnp.asarray(means, jnp.float32)
    return eqx.tree_at(lambda d: (d.scale, d.shift), decoder, (scale, shift))


# Read by the encoder and diffusers' pipelines only.
_ENCODER = (
    "in_channels",
    "down_block_types",
    "sample_size",
    "force_upcast",
    "latents_mean",
    "latents_std",
    "use_quant_conv",
)
_EDM2_LATENTS = (_EDM2_MEANS, tuple(deviation / _EDM2_TARGET for deviation in _EDM2_DEVIATIONS))
