"""The variance-exploding process."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .base import AbstractProcess


class VarianceExploding(AbstractProcess):
    """The variance-exploding process of Song et al. 2021: `alpha = 1` and `sigma = s_min (s_max / s_min)**t`, so
    that `t = 0` is clean and `t = 1` is noise.

    **Arguments:** `s_min`, `s_max`, the range of `s`, which is `sigma` here.
    """

    s_min: float = eqx.field(static=True, default=0.01)
    s_max: float = eqx.field(static=True, default=80.0)

    def alpha(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.ones_like(s)

    def t(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.log(s / self.s_min) / math.log(self.s_max / self.s_min)

    def s(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.s_min * jnp.exp(t * math.log(self.s_max / self.s_min))
