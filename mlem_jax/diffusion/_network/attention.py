"""Self-attention."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from .linear import Linear
from .norm import at_least_float32


class Attention(eqx.Module):
    """Self-attention of `heads` heads over the second axis (Vaswani et al. 2017, section 3.2); `scale` is that of
    the initial output."""

    query_key_value: Linear
    out: Linear
    heads: int = eqx.field(static=True)

    def __init__(self, channels: int, heads: int, *, scale: float = 1.0, key: PRNGKeyArray):
        key1, key2 = jr.split(key)
        self.query_key_value = Linear(channels, 3 * channels, key=key1)
        self.out = Linear(channels, channels, scale=scale, key=key2)
        self.heads = heads

    def __call__(self, x: Float[Array, "n places c"]) -> Float[Array, "n places c"]:
        n, places, channels = x.shape
        size = channels // self.heads
        projected = self.query_key_value(x).reshape(n, places, 3, self.heads, size)
        query, key, value = jnp.moveaxis(projected, 2, 0)
        # A sum of exponentials needs more digits than bfloat16 has.
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key).astype(at_least_float32(x.dtype)) / math.sqrt(size)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores).astype(x.dtype), value)
        return self.out(mixed.reshape(x.shape))
