"""Coins that share one uniform number per step."""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .base import AbstractCoins, next_finer


class NestedCoins(AbstractCoins):
    """One uniform random number per step for all levels: level `k` fires if the number lies below `p_k`.

    These coins are independent over steps and hence unbiased given the past, like [`mlem_jax.IndependentCoins`][]. If
    the probabilities decrease with the level, a level fires only together with all cheaper levels. This makes firings
    cheaper and correlates the increments of a step (the coupled sum estimator of Rhee & Glynn 2015).
    """

    def init(self, num_levels: int) -> PyTree[Array]:
        """`None`: these coins have no state."""
        return None

    def draw(
        self, p: Float[Array, " levels"], state: Any, step: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[Int[Array, " levels"], Any]:
        """See [`mlem_jax.AbstractCoins`][]."""
        uniform = jr.uniform(jr.fold_in(key, step), (), p.dtype)
        return (uniform < p).astype(jnp.int32), state

    def weight_covariance(
        self, p: Float[Array | np.ndarray, "*steps levels"]
    ) -> Float[Array | np.ndarray, "*steps levels levels"]:
        """`1 / max(p_j, p_k) - 1`."""
        xp = p.__array_namespace__()
        return 1 / xp.maximum(p[..., :, None], p[..., None, :]) - 1

    def active_probability(
        self, p: Float[Array | np.ndarray, "*steps levels"]
    ) -> Float[Array | np.ndarray, "*steps levels"]:
        """The larger of the two levels' probabilities; 0 if they are equal, since both then fire together."""
        xp = p.__array_namespace__()
        finer = next_finer(p)
        return xp.where(p == finer, xp.zeros_like(p), xp.maximum(p, finer))

    def to_dict(self) -> dict[str, Any]:
        """See [`mlem_jax.AbstractCoins`][]."""
        return {"type": "NestedCoins"}
