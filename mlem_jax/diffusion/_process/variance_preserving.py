"""The variance-preserving process, with a cosine or a linear schedule."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .base import AbstractProcess


class VariancePreserving(AbstractProcess):
    """The variance-preserving process, `alpha**2 + sigma**2 = 1`.

    **Arguments:**

    - `s_min`, `s_max`: the range of `s`, see [`mlem_jax.diffusion.AbstractProcess`][].
    - `betas`: without it the cosine schedule, `s = tan(pi t / 2)` (Nichol & Dhariwal 2021, without
        their offset). With `betas=(first, last)` noise is added at a rate that rises linearly from `first`
        at `t = 0` to `last` at `t = 1`, `log(1 + s**2) = first t + (last - first) t**2 / 2`
        (Song et al. 2021, appendix C); their values, and DDPM's in the limit of many steps, are
        `(0.1, 20.0)`.

    Only the map between `s` and time depends on the schedule. Raises `ValueError` unless
    `0 <= first <= last`, with `0 < last < inf`.
    """

    s_min: float = eqx.field(static=True, default=0.01)
    s_max: float = eqx.field(static=True, default=80.0)
    betas: tuple[float, float] | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.betas is None:
            return
        if len(self.betas) != 2 or not 0 <= self.betas[0] <= self.betas[1] < math.inf or self.betas[1] == 0:
            raise ValueError(
                f"VariancePreserving was given betas={self.betas}; the first and the last rate of noising are "
                "expected, 0 <= first <= last, such as betas=(0.1, 20.0). Leave it out for the cosine schedule."
            )

    def alpha(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.lax.rsqrt(1 + s**2)

    def power(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        # Exactly, so that nothing is rounded for it.
        return jnp.ones_like(s)

    def t(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.betas is None:
            return jnp.arctan(s) * (2 / math.pi)
        first, last = self.betas
        integral = jnp.log1p(s**2)
        return 2 * integral / (first + jnp.sqrt(first**2 + 2 * (last - first) * integral))

    def s(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.betas is None:
            return jnp.tan(t * (math.pi / 2))
        first, last = self.betas
        return jnp.sqrt(jnp.expm1(first * t + (last - first) / 2 * t**2))
