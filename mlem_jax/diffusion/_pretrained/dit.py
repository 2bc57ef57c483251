"""DiT (Peebles & Xie 2023) and SiT (Ma et al. 2024), one architecture trained in two ways: from the authors'
files, or DiT from diffusers' `DiTTransformer2DModel`."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from .._network import depth_to_space, space_to_depth
from .network import AbstractPretrained
from .parameters import attend, Dense, layer_norm, RandomParameters, Scope
from .transformer import (
    grid_positions,
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
    - `own_embeddings`: whether every block has its own embeddings.

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
