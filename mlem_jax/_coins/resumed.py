"""Coins that have been tossed before: the rest of a pattern."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .base import AbstractCoins


class ResumedCoins(AbstractCoins):
    """A policy that begins where another one is after some steps, so that the rest of a solve keeps its looks.

    **Arguments:** `coins`, the policy; `state`, its state after `steps` steps.
    """

    coins: AbstractCoins
    state: PyTree[Array]
    steps: int = eqx.field(static=True)

    @classmethod
    def after(cls, coins: AbstractCoins, table: Float[Array, "steps levels"]) -> "ResumedCoins":
        """The policy after steps with these probabilities."""
        state = coins.init(table.shape[1])
        for step, p in enumerate(table):
            _, state = coins.toss(p, state, jnp.asarray(step), jr.key(0))
        return cls(coins, state, len(table))

    def init(self, num_levels: int) -> PyTree[Array]:
        """The state after the steps before."""
        del num_levels
        return self.state

    def toss(
        self, p: Float[Array, " levels"], state: PyTree[Array], step: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[Int[Array, " levels"], PyTree[Array]]:
        """See [`mlem_jax.AbstractCoins`][]."""
        return self.coins.toss(p, state, step + self.steps, key)

    @property
    def name(self) -> str:
        """That of the policy."""
        return self.coins.name

    @property
    def deterministic(self) -> bool:
        """Whether the policy is."""
        return self.coins.deterministic

    def randomised(self) -> AbstractCoins:
        """See [`mlem_jax.AbstractCoins`][]."""
        return ResumedCoins(self.coins.randomised(), self.state, self.steps)
