"""The rest of a coin policy's pattern, from some step on."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .base import AbstractCoins


class ResumedCoins(AbstractCoins):
    """A policy that starts in the state that another one has after some steps, so that the rest of a solve has the same
    firings as in the full solve.

    **Arguments:** `coins`, the policy; `state`, its state after `steps` steps.
    """

    coins: AbstractCoins
    state: PyTree[Array]
    steps: int = eqx.field(static=True)

    @classmethod
    def after(cls, coins: AbstractCoins, table: Float[Array, "steps levels"]) -> "ResumedCoins":
        """The policy after steps with these probabilities. The state of its coins must not depend on the key."""
        state = coins.init(table.shape[1])
        for step, p in enumerate(table):
            _, state = coins.draw(p, state, jnp.asarray(step), jr.key(0))
        return cls(coins, state, len(table))

    def init(self, num_levels: int) -> PyTree[Array]:
        """The policy's state after the steps before."""
        del num_levels
        return self.state

    def draw(
        self, p: Float[Array, " levels"], state: PyTree[Array], step: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[Int[Array, " levels"], PyTree[Array]]:
        """See [`mlem_jax.AbstractCoins`][]."""
        return self.coins.draw(p, state, step + self.steps, key)

    @property
    def name(self) -> str:
        """The policy's name."""
        return self.coins.name

    @property
    def deterministic(self) -> bool:
        """Whether the policy is deterministic."""
        return self.coins.deterministic

    def randomised(self) -> AbstractCoins:
        """See [`mlem_jax.AbstractCoins`][]."""
        return ResumedCoins(self.coins.randomised(), self.state, self.steps)
