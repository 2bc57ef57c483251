"""What a coin policy is: the two functions that a solver calls, and what a policy says of itself.

A policy turns probabilities `p_k` into counts `n_k` with `E n_k = p_k`; the increment of level `k` then has the weight
`n_k / p_k`, of mean 1. Policies differ in how they spread the firings over time.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree


class AbstractCoins(eqx.Module):
    """A policy for the steps in which the levels are looked at.

    A policy of your own needs `init` and `toss`. What it says of itself has defaults: it is called by its class, counts
    as random, and planning simulates it instead of using closed forms.
    """

    @abc.abstractmethod
    def init(self, num_levels: int) -> PyTree[Array]:
        """The policy's state before the first step: any PyTree of arrays (random keys as `jax.random.key_data`), or
        `None`."""

    @abc.abstractmethod
    def toss(
        self,
        p: Float[Array, " levels"],
        state: PyTree[Array],
        step: Int[Array, ""],
        key: PRNGKeyArray,
    ) -> tuple[Int[Array, " levels"], PyTree[Array]]:
        """**Returns:** how often each level fires in this step (`E = p`; exactly 1 where `p = 1`), and the state for
        the next step. Deterministic given its arguments."""

    @property
    def name(self) -> str:
        """What the policy is called in tables and files, with the settings that make a difference."""
        return type(self).__name__

    @property
    def deterministic(self) -> bool:
        """Whether the firings do not depend on the key."""
        return False

    def randomised(self) -> "AbstractCoins":
        """A random policy that does the same on average over its key; a random policy itself. Plans are chosen by it,
        so that the choice does not rest on where a deterministic pattern happens to fall on a few pilots."""
        return self

    def weight_covariance(
        self, p: Float[Array | np.ndarray, "*steps levels"]
    ) -> Float[Array | np.ndarray, "*steps levels levels"] | None:
        """The covariance of the levels' weights in one step, if weights of different steps are uncorrelated; `None`
        where they are correlated or no formula is known."""
        del p
        return None

    def active_probability(
        self, p: Float[Array | np.ndarray, "*steps levels"]
    ) -> Float[Array | np.ndarray, "*steps levels"] | None:
        """The probability that a level's weight differs from that of the next finer level (from 0 for the finest),
        which means that the level is evaluated; `None` where no formula is known."""
        del p
        return None

    def to_dict(self) -> dict[str, Any]:
        """The policy as JSON can hold it; [`mlem_jax.coins_from_dict`][] reads it. Raises `ValueError` for a policy
        that is not one of mlem_jax's."""
        raise ValueError(
            f"{self.name} is not one of mlem_jax's coin policies and cannot be written to a file."
        )


def next_finer(p: Any) -> Any:
    """For each level the value of the next finer one, and 0 for the finest: `(..., levels)`."""
    xp = p.__array_namespace__()
    return xp.concat([p[..., 1:], xp.zeros_like(p[..., :1])], axis=-1)


@eqx.filter_jit
def simulate_counts(
    coins: AbstractCoins, p: Float[Array, "steps levels"], keys: Array
) -> Int[Array, "seeds steps levels"]:
    """How often each level fires in each step of a solve, for each key."""

    def one(key: PRNGKeyArray) -> Int[Array, "steps levels"]:
        def step(state: PyTree, inputs: tuple[Array, Array]) -> tuple[PyTree, Array]:
            count, state = coins.toss(inputs[0], state, inputs[1], key)
            return state, count

        return jax.lax.scan(step, coins.init(p.shape[1]), (p, jnp.arange(p.shape[0])))[1]

    return jax.vmap(one)(keys)
