"""Computing in a narrow floating-point type, with parameters kept in a wide one."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, DTypeLike, Float

from .network import AbstractNetwork


class MixedPrecision(AbstractNetwork):
    """A network that computes in another type: parameters and `x` are cast inside the call, and the output has the
    type of `x` again. Gradients are those of the parameters as they are kept.

        predictor = NoisePredictor(MixedPrecision(network, "bfloat16"), process, "v")

    **Arguments:** `network`, such as [`mlem_jax.diffusion.UNet`][]; `dtype`, such as `"bfloat16"`. The noise
    level is not rounded.

    Raises `ValueError` for a type that is not a floating one.
    """

    network: AbstractNetwork
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(self, network: AbstractNetwork, dtype: DTypeLike = "bfloat16"):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"dtype={dtype}; a floating type is expected, such as 'bfloat16'.")
        self.network = network
        self.dtype = jnp.dtype(dtype)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.network.shape

    @property
    def classes(self) -> int | None:
        return self.network.classes

    def __call__(
        self, x: Float[Array, "*n h w c"], noise_level: Float[Array, "*m"], label: ArrayLike | None = None
    ) -> Float[Array, "*n h w c"]:
        narrow = jax.tree.map(lambda p: p.astype(self.dtype) if eqx.is_inexact_array(p) else p, self.network)
        return narrow(x.astype(self.dtype), noise_level, label).astype(x.dtype)
