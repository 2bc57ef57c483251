"""JiT (Li & He 2025, "Back to Basics: Let Denoising Generative Models Denoise"): a transformer on large patches of
pixels that predicts the clean image."""

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

from .._network import depth_to_space, space_to_depth
from .._process import FlowMatching
from .family import Found, Source
from .files import Checkpoint
from .network import AbstractPretrained, read_settings
from .parameters import attend, Dense, RandomParameters, Scope, widened
from .schedule import Training
from .transformer import (
    grid_positions,
    heads_of,
    LabelEmbedding,
    modulate,
    patch_weight,
    PERIOD,
    TimeEmbedding,
)

_EPSILON = 1e-6
# Hidden channels of the gated dense layers, in units of the width: two thirds of the usual 4.
_EXPANSION = 8 / 3


@dataclasses.dataclass(frozen=True)
class JiTConfig:
    """Sizes of a JiT; the defaults are those of JiT-B/16.

    - `size`: side of the (square) image in pixels; `channels` of it; `patch`: side of a patch.
    - `width`, `depth`, `heads`; `bottleneck`: numbers to which a patch's pixels are reduced first.
    - `classes`: number of labels, besides the one for "no label".
    - `tokens`: how many tokens of the label join the patches, before block number `start` (counted from 0).

    Raises `ValueError` for sizes that do not fit.
    """

    size: int = 256
    channels: int = 3
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    bottleneck: int = 128
    classes: int = 1000
    tokens: int = 32
    start: int = 4

    def __post_init__(self):
        if self.size % self.patch:
            raise ValueError(
                f"The configuration has size = {self.size}, which is no multiple of patch = {self.patch}."
            )
        if self.width % (4 * self.heads):
            raise ValueError(
                f"The configuration has width = {self.width} with heads = {self.heads}; a multiple of four times "
                "the heads is expected."
            )


class _RMSNorm(eqx.Module):
    """Each place's channels divided by their root mean square, then scaled."""

    weight: Float[Array, " c"]

    def __init__(self, scope: Scope, channels: int):
        self.weight = scope("weight", (channels,), mean=1.0)

    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        wide = x.astype(widened(x.dtype))
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + _EPSILON)
        return normed.astype(x.dtype) * jnp.expand_dims(self.weight, tuple(range(x.ndim - 1)))


def _rotations(side: int, size: int, tokens: int) -> Float[np.ndarray, "2 places size"]:
    """Cosines and sines by which neighbouring pairs of a head's channels are rotated (Su et al. 2021): half of the
    pairs by a place's row, half by its column, none for the label's tokens."""
    frequencies = PERIOD ** -(np.arange(size // 4) / (size / 4))
    angles = np.repeat(np.arange(side)[:, None] * frequencies, 2, axis=1)
    rows = np.broadcast_to(angles[:, None], (side, side, size // 2))
    columns = np.broadcast_to(angles[None], (side, side, size // 2))
    places = np.concatenate([rows, columns], axis=2).reshape(side * side, size)
    places = np.concatenate([np.zeros((tokens, size)), places])
    return np.stack([np.cos(places), np.sin(places)]).astype(np.float32)


def _rotate(
    x: Float[Array, "n places heads size"], rotations: Float[np.ndarray, "2 places size"]
) -> Float[Array, "n places heads size"]:
    cosines, sines = (jnp.asarray(part, x.dtype)[None, :, None, :] for part in rotations)
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
    return x * cosines + turned * sines


class _Block(eqx.Module):
    """Attention with normalised and rotated queries and keys, and gated dense layers."""

    modulation: Dense
    norm1: _RMSNorm
    query_norm: _RMSNorm
    key_norm: _RMSNorm
    query_key_value: Dense
    out: Dense
    norm2: _RMSNorm
    grow: Dense
    shrink: Dense
    heads: int = eqx.field(static=True)

    def __init__(self, config: JiTConfig, scope: Scope):
        width = config.width
        hidden = int(width * _EXPANSION)
        attention = scope / "attn"
        self.modulation = Dense(scope / "adaLN_modulation" / 1, width, 6 * width)
        self.norm1 = _RMSNorm(scope / "norm1", width)
        self.query_norm = _RMSNorm(attention / "q_norm", width // config.heads)
        self.key_norm = _RMSNorm(attention / "k_norm", width // config.heads)
        self.query_key_value = Dense(attention / "qkv", width, 3 * width)
        self.out = Dense(attention / "proj", width, width)
        self.norm2 = _RMSNorm(scope / "norm2", width)
        self.grow = Dense(scope / "mlp" / "w12", width, 2 * hidden)
        self.shrink = Dense(scope / "mlp" / "w3", hidden, width)
        self.heads = config.heads

    def __call__(
        self,
        x: Float[Array, "n places c"],
        embedding: Float[Array, "n c"],
        rotations: Float[np.ndarray, "2 places size"],
    ) -> Float[Array, "n places c"]:
        n, places, width = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(self.modulation(embedding), 6, axis=-1)
        projected = self.query_key_value(modulate(self.norm1(x), shift1, scale1))
        parts = projected.reshape(n, places, 3, self.heads, width // self.heads)
        query = _rotate(self.query_norm(parts[:, :, 0]), rotations)
        key = _rotate(self.key_norm(parts[:, :, 1]), rotations)
        x = x + gate1[:, None] * self.out(attend(query, key, parts[:, :, 2]))
        gate, hidden = jnp.split(self.grow(modulate(self.norm2(x), shift2, scale2)), 2, axis=-1)
        return x + gate2[:, None] * self.shrink(jax.nn.silu(gate) * hidden)


class JiT(AbstractPretrained):
    """A JiT on channels-last arrays, `(x, time, label) -> clean image`.

    `time` runs from 0 (noise) to 1 (image). Label number `classes` stands for "no label".

    Build it with [`mlem_jax.diffusion.load_network`][], or with random weights by `JiT.init(config, key=key)`.
    """

    reduce: Float[Array, "pixels b"]
    stem: Float[Array, "b c"]
    stem_bias: Float[Array, " c"]
    positions: Float[Array, "places c"]
    time: TimeEmbedding
    label: LabelEmbedding
    token_positions: Float[Array, "tokens c"]
    blocks: list[_Block]
    modulation: Dense
    norm: _RMSNorm
    head: Dense
    config: JiTConfig = eqx.field(static=True)
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(self, config: JiTConfig, scope: Scope):
        self.config, self.dtype = config, scope.dtype
        width, patch, channels = config.width, config.patch, config.channels
        side = config.size // patch
        embedder = scope / "x_embedder"
        self.reduce = patch_weight(embedder / "proj1", channels, patch, config.bottleneck)
        weight = (embedder / "proj2")(
            "weight", (width, config.bottleneck, 1, 1), deviation=config.bottleneck**-0.5, axes=(2, 3, 1, 0)
        )
        self.stem = weight[0, 0]
        self.stem_bias = (embedder / "proj2")("bias", (width,))
        if scope.has("pos_embed"):
            self.positions = scope("pos_embed", (1, side**2, width))[0]
        else:
            self.positions = jnp.asarray(grid_positions(side, width), scope.dtype)
        self.time = TimeEmbedding(scope / "t_embedder", width)
        self.label = LabelEmbedding(scope / "y_embedder", config.classes + 1, width)
        self.token_positions = scope("in_context_posemb", (1, config.tokens, width), deviation=0.02)[0]
        self.blocks = [_Block(config, scope / "blocks" / i) for i in range(config.depth)]
        last = scope / "final_layer"
        self.modulation = Dense(last / "adaLN_modulation" / 1, width, 2 * width)
        self.norm = _RMSNorm(last / "norm_final", width)
        self.head = Dense(last / "linear", width, patch**2 * channels)

    @classmethod
    def init(cls, config: JiTConfig, *, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32) -> "JiT":
        """A network with random weights."""
        return cls(config, Scope(RandomParameters(key), dtype))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.config.size, self.config.size, self.config.channels

    @property
    def classes(self) -> int:
        return self.config.classes

    @property
    def null(self) -> int:
        return self.config.classes

    def evaluate(
        self, x: Float[Array, "n h w c"], conditioning: Float[Array, " n"], label: Array | None
    ) -> Float[Array, "n h w c"]:
        assert label is not None
        config = self.config
        patches = space_to_depth(x.astype(self.dtype), config.patch)
        n, rows, columns, pixels = patches.shape
        hidden = patches.reshape(n, rows * columns, pixels) @ self.reduce @ self.stem
        hidden = hidden + (self.stem_bias[None, None] + self.positions[None])
        labels = self.label(label)
        embedding = jax.nn.silu(self.time(conditioning) + labels)
        size = config.width // config.heads
        rotations = _rotations(rows, size, 0)
        for i, block in enumerate(self.blocks):
            if i == config.start and config.tokens:
                tokens = labels[:, None] + self.token_positions[None]
                hidden = jnp.concatenate([tokens, hidden], axis=1)
                rotations = _rotations(rows, size, config.tokens)
            hidden = block(hidden, embedding, rotations)
        shift, scale = jnp.split(self.modulation(embedding), 2, axis=-1)
        out = self.head(modulate(self.norm(hidden[:, hidden.shape[1] - rows * columns :]), shift, scale))
        return depth_to_space(out.reshape(patches.shape), config.patch)


def find_jit(source: Source) -> Found:
    """A JiT: straight lines from noise at time 0 to images at time 1, predicted clean image."""
    checkpoint = source.checkpoint
    # Fixed numbers, which are computed here.
    checkpoint.rename({name: None for name in checkpoint.shapes if name.startswith("feat_rope")})
    table = {**_sizes(checkpoint), **(source.config or {}), **source.settings}
    absent = [name for name in ("heads", "start") if name not in table]
    if absent:
        raise ValueError(
            f"{source.path} does not tell {' and '.join(absent)} of this JiT, which is not of a published size "
            f"(width {table['width']}, depth {table['depth']}). Write {absent[0]} into a "
            f"config.json beside the file, or config={{'{absent[0]}': ...}}."
        )
    config = read_settings(JiTConfig, table, name="JiT", ignored=())
    training = Training(FlowMatching(noise_at=0), "x0", "time")
    return Found("JiT", functools.partial(JiT, config), training)


# The block before which the label's tokens join the patches in the published networks, by depth.
_STARTS = {12: 4, 24: 8, 32: 10}


def _sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the shapes of the authors' arrays tell, and the rest for published networks."""
    there = checkpoint.shapes
    needed = (
        "x_embedder.proj1.weight",
        "pos_embed",
        "in_context_posemb",
        "y_embedder.embedding_table.weight",
    )
    lacking = [name for name in needed if name not in there]
    if lacking:
        raise ValueError(f"{checkpoint.path} is not a JiT: it lacks {', '.join(lacking)}.")
    bottleneck, channels, patch, _ = there["x_embedder.proj1.weight"]
    _, places, width = there["pos_embed"]
    depth = len({name.split(".")[1] for name in there if re.match(r"blocks\.\d+\.", name)})
    found: dict[str, Any] = {
        "size": math.isqrt(places) * patch,
        "channels": channels,
        "patch": patch,
        "width": width,
        "depth": depth,
        "bottleneck": bottleneck,
        "classes": there["y_embedder.embedding_table.weight"][0] - 1,
        "tokens": there["in_context_posemb"][1],
    }
    heads = heads_of(width)
    if heads is not None:
        found["heads"] = heads
    if depth in _STARTS and heads is not None:
        found["start"] = _STARTS[depth]
    return found
