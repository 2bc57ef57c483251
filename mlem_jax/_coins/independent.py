"""The paper's coins: independent over steps and levels."""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .base import AbstractCoins, next_finer


class IndependentCoins(AbstractCoins):
    """The paper's coins: Bernoulli, independent over steps and levels (Jacot 2026).

    Given the past, the drift of each step is an unbiased estimate of the finest level's, for any probabilities.
    """

    def init(self, num_levels: int) -> PyTree[Array]:
        """`None`: these coins have no state."""
        return None

    def draw(
        self, p: Float[Array, " levels"], state: Any, step: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[Int[Array, " levels"], Any]:
        """See [`mlem_jax.AbstractCoins`][]."""
        uniform = jr.uniform(jr.fold_in(key, step), p.shape, p.dtype)
        return (uniform < p).astype(jnp.int32), state

    def weight_covariance(
        self, p: Float[Array | np.ndarray, "*steps levels"]
    ) -> Float[Array | np.ndarray, "*steps levels levels"]:
        """`1 / p_k - 1` on the diagonal."""
        xp = p.__array_namespace__()
        diagonal = xp.broadcast_to(xp.eye(p.shape[-1], dtype=p.dtype), (*p.shape, p.shape[-1]))
        return (1 / p - 1)[..., None] * diagonal

    def active_probability(
        self, p: Float[Array | np.ndarray, "*steps levels"]
    ) -> Float[Array | np.ndarray, "*steps levels"]:
        """The probability that one of the two levels fires, but not both with the same weight."""
        xp = p.__array_namespace__()
        finer = next_finer(p)
        return p + finer - p * finer - xp.where(p == finer, p * finer, xp.zeros_like(p))

    def to_dict(self) -> dict[str, Any]:
        """See [`mlem_jax.AbstractCoins`][]."""
        return {"type": "IndependentCoins"}
