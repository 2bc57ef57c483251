"""DiT (Peebles & Xie 2023) and SiT (Ma et al. 2024), one architecture trained in two ways: from the authors'
files, or DiT from diffusers' `DiTTransformer2DModel`."""

import dataclasses
import functools
import math
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from .._network.layers import depth_to_space, space_to_depth
from .._process import FlowMatching
from .family import Found, Source
from .files import Checkpoint
from .network import AbstractPretrained, read_settings
from .parameters import attend, Dense, layer_norm, RandomParameters, Scope
from .schedule import read_scheduler, Training
from .transformer import (
    grid_positions,
    heads_of,
    LabelEmbedding,
    modulate,
    patch_weight,
    TimeEmbedding,
)

_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class PretrainedDiTConfig:
    """Sizes of a DiT or SiT; the defaults are those of DiT-XL/2 in the latents of 256 x 256 pixels.

    - `size`: side of the (square) image or latent image; `channels` of it; `patch`: side of a patch.
    - `width`, `depth`, `heads`, and `expansion` of the dense layers.
    - `classes`: number of labels, besides the one for "no label" where there is a `null`.
    - `learned_variance`: whether the file has a second half of outputs, which is left out.
    - `frequency_shift`, `second_epsilon`: in which diffusers differs from the authors.
    - `own_embeddings`: whether every block has embeddings of its own.

    Raises `ValueError` for sizes that do not fit.
    """

    size: int = 32
    channels: int = 4
    patch: int = 2
    width: int = 1152
    depth: int = 28
    heads: int = 16
    expansion: int | float = 4
    classes: int = 1000
    null: bool = True
    learned_variance: bool = True
    frequency_shift: int = 0
    second_epsilon: float = _EPSILON
    own_embeddings: bool = False

    def __post_init__(self):
        if self.size % self.patch:
            raise ValueError(
                f"The configuration has size = {self.size}, which is no multiple of patch = {self.patch}."
            )
        if self.width % self.heads:
            raise ValueError(
                f"The configuration has width = {self.width}, which is no multiple of heads = {self.heads}."
            )


class _Embeddings(eqx.Module):
    """Time and label as one vector."""

    time: TimeEmbedding
    label: LabelEmbedding

    def __init__(self, config: PretrainedDiTConfig, scope: Scope):
        self.time = TimeEmbedding(scope / "t_embedder", config.width, shift=config.frequency_shift)
        self.label = LabelEmbedding(scope / "y_embedder", config.classes + config.null, config.width)

    def __call__(self, time: Float[Array, " n"], label: Array) -> Float[Array, "n c"]:
        return jax.nn.silu(self.time(time) + self.label(label))


class _Block(eqx.Module):
    """Attention and dense layers, each scaled, shifted and gated."""

    modulation: Dense
    query_key_value: Dense
    out: Dense
    grow: Dense
    shrink: Dense
    embeddings: _Embeddings | None
    heads: int = eqx.field(static=True)
    second_epsilon: float = eqx.field(static=True)

    def __init__(self, config: PretrainedDiTConfig, scope: Scope):
        width = config.width
        hidden = int(width * config.expansion)
        self.modulation = Dense(scope / "adaLN_modulation" / 1, width, 6 * width)
        self.query_key_value = _fused(scope / "attn", width)
        self.out = Dense(scope / "attn" / "proj", width, width)
        self.grow = Dense(scope / "mlp" / "fc1", width, hidden)
        self.shrink = Dense(scope / "mlp" / "fc2", hidden, width)
        self.embeddings = _Embeddings(config, scope) if config.own_embeddings else None
        self.heads, self.second_epsilon = config.heads, config.second_epsilon

    def __call__(self, x: Float[Array, "n places c"], embedding: Float[Array, "n c"]) -> Array:
        n, places, width = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(self.modulation(embedding), 6, axis=-1)
        projected = self.query_key_value(modulate(layer_norm(x, _EPSILON), shift1, scale1))
        parts = projected.reshape(n, places, 3, self.heads, width // self.heads)
        mixed = attend(parts[:, :, 0], parts[:, :, 1], parts[:, :, 2])
        x = x + gate1[:, None] * self.out(mixed)
        hidden = self.grow(modulate(layer_norm(x, self.second_epsilon), shift2, scale2))
        return x + gate2[:, None] * self.shrink(jax.nn.gelu(hidden, approximate=True))


def _fused(scope: Scope, width: int) -> Dense:
    """The layer for query, key and value: one array of the authors' files, three of diffusers'."""
    if not scope.has("q.weight"):
        return Dense(scope / "qkv", width, 3 * width)
    query, key, value = (Dense(scope / name, width, width) for name in "qkv")
    # All arrays of the three side by side.
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-1), query, key, value)


class PretrainedDiT(AbstractPretrained):
    """A DiT or SiT on channels-last arrays, `(x, time, label) -> array of x's shape`.

    `time` is a number of steps, 0 to 999, for a DiT, and 0 (noise) to 1 (image) for a SiT. A learned variance is left
    out: its half of the last layer is not even computed. Label number `classes` stands for "no label".

    Build it with [`mlem_jax.diffusion.load_network`][], or with random weights by `PretrainedDiT.init(config,
    key=key)`.
    """

    stem: Float[Array, "pixels c"]
    stem_bias: Float[Array, " c"]
    positions: Float[Array, "places c"]
    embeddings: _Embeddings | None
    blocks: list[_Block]
    modulation: Dense
    head: Float[Array, "c pixels"]
    head_bias: Float[Array, " pixels"]
    config: PretrainedDiTConfig = eqx.field(static=True)
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(self, config: PretrainedDiTConfig, scope: Scope):
        self.config, self.dtype = config, scope.dtype
        width, patch, channels = config.width, config.patch, config.channels
        side = config.size // patch
        self.stem = patch_weight(scope / "x_embedder" / "proj", channels, patch, width)
        self.stem_bias = (scope / "x_embedder" / "proj")("bias", (width,))
        if scope.has("pos_embed"):
            self.positions = scope("pos_embed", (1, side**2, width), deviation=1.0)[0]
        else:
            self.positions = jnp.asarray(grid_positions(side, width), scope.dtype)
        self.embeddings = None if config.own_embeddings else _Embeddings(config, scope)
        self.blocks = [_Block(config, scope / "blocks" / i) for i in range(config.depth)]
        last = scope / "final_layer"
        self.modulation = Dense(last / "adaLN_modulation" / 1, width, 2 * width)
        outputs = 2 * channels if config.learned_variance else channels
        pixels = patch**2 * outputs
        weight = (last / "linear")("weight", (pixels, width), deviation=width**-0.5, axes=(1, 0))
        bias = (last / "linear")("bias", (pixels,))
        # Every pixel's prediction comes before its variance.
        self.head = weight.reshape(width, patch**2, outputs)[:, :, :channels].reshape(width, -1)
        self.head_bias = bias.reshape(patch**2, outputs)[:, :channels].reshape(-1)

    @classmethod
    def init(
        cls, config: PretrainedDiTConfig, *, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32
    ) -> "PretrainedDiT":
        """A network with random weights."""
        return cls(config, Scope(RandomParameters(key), dtype))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.config.size, self.config.size, self.config.channels

    @property
    def classes(self) -> int:
        return self.config.classes

    @property
    def null(self) -> int | None:
        return self.config.classes if self.config.null else None

    def evaluate(
        self, x: Float[Array, "n h w c"], conditioning: Float[Array, " n"], label: Array | None
    ) -> Float[Array, "n h w c"]:
        assert label is not None
        patches = space_to_depth(x.astype(self.dtype), self.config.patch)
        n, rows, columns, pixels = patches.shape
        hidden = patches.reshape(n, rows * columns, pixels) @ self.stem + self.stem_bias[None, None]
        hidden = hidden + self.positions[None]
        shared = self.embeddings or self.blocks[0].embeddings
        assert shared is not None
        first = shared(conditioning, label)
        for block in self.blocks:
            own = block.embeddings
            hidden = block(hidden, first if own is None else own(conditioning, label))
        shift, scale = jnp.split(self.modulation(first), 2, axis=-1)
        out = modulate(layer_norm(hidden, _EPSILON), shift, scale) @ self.head + self.head_bias[None, None]
        return depth_to_space(out.reshape(patches.shape), self.config.patch)


def find_dit(source: Source) -> Found:
    """A DiT: 1,000 steps of Ho et al. 2020, predicted noise."""
    config = _find_config(source)
    return Found("DiT", functools.partial(PretrainedDiT, config), read_scheduler(source.scheduler or {}))


def find_sit(source: Source) -> Found:
    """A SiT: straight lines from noise at time 0 to images at time 1, predicted velocity."""
    training = Training(FlowMatching(noise_at=0), "velocity", "time")
    return Found("SiT", functools.partial(PretrainedDiT, _find_config(source)), training)


def _find_config(source: Source) -> PretrainedDiTConfig:
    if any(name.startswith("transformer_blocks.") for name in source.checkpoint.shapes):
        return _diffusers_config(source)
    given = {**(source.config or {}), **source.settings}
    found = {**_sizes(source.checkpoint), **given}
    if "heads" not in found:
        raise ValueError(
            f"{source.path} does not tell how many heads its attention has, and its width of {found.get('width')} "
            f"is not that of a published network; write config={'heads': ...}."
        )
    return read_settings(PretrainedDiTConfig, found, name="DiT", ignored=())


def _sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the shapes of the authors' arrays tell."""
    there = checkpoint.shapes
    needed = (
        "x_embedder.proj.weight",
        "pos_embed",
        "y_embedder.embedding_table.weight",
        "final_layer.linear.weight",
    )
    absent = [name for name in needed if name not in there]
    if absent:
        raise ValueError(f"{checkpoint.path} is not a DiT or SiT: it lacks {', '.join(absent)}.")
    width, channels, patch, _ = there["x_embedder.proj.weight"]
    depth = len({name.split(".")[1] for name in there if name.startswith("blocks.")})
    found = {
        "size": math.isqrt(there["pos_embed"][1]) * patch,
        "channels": channels,
        "patch": patch,
        "width": width,
        "depth": depth,
        "classes": there["y_embedder.embedding_table.weight"][0] - 1,
        "learned_variance": there["final_layer.linear.weight"][0] == 2 * channels * patch**2,
    }
    heads = heads_of(width)
    return found if heads is None else {**found, "heads": heads}


# diffusers' names inside a block, in regular expressions, and the authors'.
_NAMES = (
    (r"pos_embed\.proj\.", "x_embedder.proj."),
    (r"transformer_blocks\.(\d+)\.norm1\.emb\.timestep_embedder\.linear_1\.", r"blocks.\1.t_embedder.mlp.0."),
    (r"transformer_blocks\.(\d+)\.norm1\.emb\.timestep_embedder\.linear_2\.", r"blocks.\1.t_embedder.mlp.2."),
    (r"transformer_blocks\.(\d+)\.norm1\.emb\.class_embedder\.", r"blocks.\1.y_embedder."),
    (r"transformer_blocks\.(\d+)\.norm1\.linear\.", r"blocks.\1.adaLN_modulation.1."),
    (r"transformer_blocks\.(\d+)\.attn1\.to_out\.0\.", r"blocks.\1.attn.proj."),
    (r"transformer_blocks\.(\d+)\.attn1\.to_(q|k|v)\.", r"blocks.\1.attn.\2."),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.", r"blocks.\1.mlp.fc1."),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2\.", r"blocks.\1.mlp.fc2."),
    (r"proj_out_1\.", "final_layer.adaLN_modulation.1."),
    (r"proj_out_2\.", "final_layer.linear."),
)


@dataclasses.dataclass(frozen=True)
class _DiffusersConfig:
    """The entries of a `DiTTransformer2DModel`'s `config.json` that decide what it computes."""

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = None
    num_layers: int = 28
    attention_bias: bool = True
    sample_size: int = 32
    patch_size: int = 2
    activation_fn: str = "gelu-approximate"
    num_embeds_ada_norm: int = 1000
    norm_type: str = "ada_norm_zero"
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-5

    def __post_init__(self):
        only = {
            "attention_bias": True,
            "activation_fn": "gelu-approximate",
            "norm_type": "ada_norm_zero",
            "norm_elementwise_affine": False,
        }
        for name, value in only.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"The configuration has {name} = {getattr(self, name)!r}; supported is {value!r}."
                )


def _diffusers_config(source: Source) -> PretrainedDiTConfig:
    name = "DiTTransformer2DModel"
    ignored = ("dropout", "norm_num_groups", "upcast_attention")
    table = read_settings(_DiffusersConfig, source.require_config(name), name=name, ignored=ignored)
    checkpoint = source.checkpoint
    renamed: dict[str, str | None] = {}
    for stored in checkpoint.shapes:
        for pattern, ours in _NAMES:
            if re.match(pattern, stored):
                renamed[stored] = re.sub(f"^{pattern}", ours, stored)
    checkpoint.rename(renamed)
    return PretrainedDiTConfig(
        size=table.sample_size,
        channels=table.in_channels,
        patch=table.patch_size,
        width=table.num_attention_heads * table.attention_head_dim,
        depth=table.num_layers,
        heads=table.num_attention_heads,
        classes=table.num_embeds_ada_norm,
        learned_variance=(table.out_channels or table.in_channels) == 2 * table.in_channels,
        frequency_shift=1,
        second_epsilon=table.norm_eps,
        own_embeddings=not _share_embeddings(checkpoint),
    )


def _share_embeddings(checkpoint: Checkpoint) -> bool:
    """diffusers keeps the embeddings once for every block. Where all are equal, as in a converted checkpoint, one
    is kept and the others are forgotten."""
    names = [name for name in checkpoint.shapes if re.match(r"blocks\.\d+\.[ty]_embedder\.", name)]
    firsts = {name.split(".", 2)[2]: checkpoint.read(name) for name in names if name.startswith("blocks.0.")}
    for name in names:
        first = firsts.get(name.split(".", 2)[2])
        if first is None or not np.array_equal(checkpoint.read(name), first):
            return False
    checkpoint.rename(
        {name: name.split(".", 2)[2] if name.startswith("blocks.0.") else None for name in names}
    )
    return True
