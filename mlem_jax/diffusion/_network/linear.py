"""A dense layer."""

import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray


class Linear(eqx.Module):
    """A dense layer on the last axis."""

    weight: Float[Array, "c_in c_out"]
    bias: Float[Array, " c_out"]

    def __init__(self, c_in: int, c_out: int, *, scale: float = 1.0, key: PRNGKeyArray):
        self.weight = scale / math.sqrt(c_in) * jr.normal(key, (c_in, c_out))
        self.bias = jnp.zeros(c_out)

    def __call__(self, x: Float[Array, "*n c_in"]) -> Float[Array, "*n c_out"]:
        return x @ self.weight + jnp.expand_dims(self.bias, tuple(range(x.ndim - 1)))
