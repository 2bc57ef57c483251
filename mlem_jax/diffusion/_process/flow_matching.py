"""Flow matching on straight lines."""

from typing import Literal

import equinox as eqx
from jaxtyping import Array, Float

from .base import AbstractProcess


class FlowMatching(AbstractProcess):
    """Flow matching on straight lines between image and noise, also named rectified flow (Liu et al. 2022, Lipman
    et al. 2022): `x = (1 - t) x_0 + t eps`.

    **Arguments:**

    - `s_min`, `s_max`: the range of `s = t / (1 - t)`, see [`mlem_jax.diffusion.AbstractProcess`][].
    - `noise_at`: the time at which there is nothing but noise, 1 as above, or 0 where time runs from noise
        to image, `x = (1 - t) eps + t x_0`, and the velocity has the other sign.

    Raises `ValueError` for another `noise_at`.
    """

    s_min: float = eqx.field(static=True, default=0.01)
    s_max: float = eqx.field(static=True, default=80.0)
    noise_at: Literal[0, 1] = eqx.field(static=True, default=1)

    def __check_init__(self):
        if self.noise_at not in (0, 1):
            raise ValueError(
                f"FlowMatching was given noise_at={self.noise_at!r}; write noise_at=1 if the network was "
                "trained with clean images at t = 0, noise_at=0 if with noise at t = 0."
            )

    def alpha(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        return 1 / (1 + s)

    def t(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        return s / (1 + s) if self.noise_at == 1 else 1 / (1 + s)

    def s(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return t / (1 - t) if self.noise_at == 1 else (1 - t) / t
