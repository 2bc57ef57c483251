"""Noise level and label as a vector."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .linear import Linear
from .norm import at_least_float32

_NUM_FREQUENCIES = 8


class Embedding(eqx.Module):
    """Noise level and label as one vector: two dense layers on sines and cosines, and a table of `classes + 1`
    rows, the last of which stands for "no label"."""

    linear1: Linear
    linear2: Linear
    labels: Float[Array, "rows e"] | None

    def __init__(
        self, size: int, classes: int | None, *, keys: tuple[PRNGKeyArray, PRNGKeyArray, PRNGKeyArray]
    ):
        self.linear1 = Linear(2 * _NUM_FREQUENCIES, size, key=keys[0])
        self.linear2 = Linear(size, size, key=keys[1])
        # About as large as what it is added to.
        self.labels = None if classes is None else 0.3 * jr.normal(keys[2], (classes + 1, size))

    def __call__(
        self, noise_level: Float[Array, "*m"], label: ArrayLike | None, dtype: jnp.dtype
    ) -> Float[Array, "k e"]:
        # In bfloat16 the logarithms of neighbouring noise levels would be the same number.
        wide = at_least_float32(dtype)
        frequencies = 2.0 ** jnp.linspace(-3.0, 2.0, _NUM_FREQUENCIES, dtype=wide)
        angles = jnp.reshape(noise_level, (-1, 1)).astype(wide) * frequencies[None, :]
        features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(dtype)
        hidden = self.linear2(jax.nn.silu(self.linear1(features)))
        if self.labels is not None:
            rows = self.labels.at[jnp.reshape(jnp.asarray(label), (-1,))]
            hidden = hidden + rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return jax.nn.silu(hidden)
