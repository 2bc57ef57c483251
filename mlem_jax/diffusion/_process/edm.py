"""The process of Karras et al. 2022."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .base import AbstractProcess


class EDM(AbstractProcess):
    """The process of Karras et al. 2022: `alpha = 1`, and time is `sigma` itself. For networks with their
    preconditioning see [`mlem_jax.diffusion.Preconditioned`][].

    **Arguments:** `s_min`, `s_max`, the range of `s`, which is `sigma` here.
    """

    s_min: float = eqx.field(static=True, default=0.002)
    s_max: float = eqx.field(static=True, default=80.0)

    def alpha(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.ones_like(s)

    def t(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        return s

    def s(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return t
