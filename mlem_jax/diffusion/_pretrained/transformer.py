"""What DiT, SiT and JiT share: patches, positions, and the embeddings of time and label. Names are those of the
authors' checkpoints."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .parameters import Dense, Scope, sinusoids

_FREQUENCIES = 256
# The base of the positions' frequencies (Vaswani et al. 2017).
PERIOD = 10_000.0


class TimeEmbedding(eqx.Module):
    """A number as a vector: two dense layers on 128 sines and cosines."""

    first: Dense
    second: Dense
    shift: int = eqx.field(static=True)

    def __init__(self, scope: Scope, width: int, *, shift: int = 0):
        self.first = Dense(scope / "mlp" / 0, _FREQUENCIES, width)
        self.second = Dense(scope / "mlp" / 2, width, width)
        self.shift = shift

    def __call__(self, time: Float[Array, " n"]) -> Float[Array, "n c"]:
        features = sinusoids(time, _FREQUENCIES, shift=float(self.shift), cosine_first=True)
        return self.second(jax.nn.silu(self.first(features.astype(self.first.weight.dtype))))


class LabelEmbedding(eqx.Module):
    """A table with one row for each label; a label that is out of range makes NaN."""

    table: Float[Array, "rows c"]

    def __init__(self, scope: Scope, rows: int, width: int):
        self.table = (scope / "embedding_table")("weight", (rows, width), deviation=1.0)

    def __call__(self, label: Int[Array, " n"]) -> Float[Array, "n c"]:
        return self.table.at[label].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def patch_weight(scope: Scope, channels: int, patch: int, width: int) -> Float[Array, "pixels width"]:
    """A convolution whose stride is its size, as a matrix for `space_to_depth`'s patches."""
    pixels = channels * patch**2
    shape = (width, channels, patch, patch)
    weight = scope("weight", shape, deviation=pixels**-0.5, axes=(2, 3, 1, 0))
    return weight.reshape(pixels, width)


def grid_positions(side: int, width: int) -> Float[np.ndarray, "places width"]:
    """Sines and cosines of column and row of every place of a square: a quarter of the channels each."""
    frequencies = PERIOD ** -(np.arange(width // 4) / (width / 4))
    angles = np.arange(side)[:, None] * frequencies
    one = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    columns = np.broadcast_to(one[None], (side, side, width // 2))
    rows = np.broadcast_to(one[:, None], (side, side, width // 2))
    return np.concatenate([columns, rows], axis=2).reshape(side * side, width).astype(np.float32)


def modulate(
    x: Float[Array, "n places c"], shift: Float[Array, "n c"], scale: Float[Array, "n c"]
) -> Float[Array, "n places c"]:
    """`x` scaled and shifted, by one number per image and channel."""
    return x * (1 + scale[:, None]) + shift[:, None]


def heads_of(width: int) -> int | None:
    """The number of heads of the published networks of this width, or `None` for another width."""
    return {384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16}.get(width)
