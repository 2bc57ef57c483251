"""The base class of coin policies: two functions that a solver calls, and properties that planning uses.

In each step a policy turns probabilities `p_k` into counts `n_k` with `E n_k = p_k`. Level `k` fires if `n_k > 0`; its
increment then has the weight `n_k / p_k`, whose mean is 1. Policies differ in how firings are distributed over time.
"""

import abc
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

# Addresses of objects differ between processes.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_ONE_LINE = 10**6


class AbstractCoins(eqx.Module):
    """A policy that decides in which steps each level fires.

    To write a policy, implement `init` and `draw`. All other methods have defaults: the policy is named after its
    class, is taken to be random, and is simulated where planning has no closed form for it.
    """

    @abc.abstractmethod
    def init(self, num_levels: int) -> PyTree[Array]:
        """The policy's state before the first step: any PyTree of arrays (random keys as `jax.random.key_data`), or
        `None`."""

    @abc.abstractmethod
    def draw(
        self,
        p: Float[Array, " levels"],
        state: PyTree[Array],
        step: Int[Array, ""],
        key: PRNGKeyArray,
    ) -> tuple[Int[Array, " levels"], PyTree[Array]]:
        """Draws the coins of one step.

        **Arguments:** `p`, the probability of each level, `(K,)`; `state`, the policy's state; `step`, the number of
        draws before this one; `key`, the solver's key, the same in every step.

        **Returns:** how many times each level fires in this step (with mean `p`, and exactly once where `p = 1`), and
        the state for the next step. The result must be a function of the arguments.
        """

    @property
    def name(self) -> str:
        """The policy's name in tables and files, including the settings that distinguish it from others."""
        return type(self).__name__

    @property
    def deterministic(self) -> bool:
        """Whether the firings do not depend on the key."""
        return False

    def randomised(self) -> "AbstractCoins":
        """A random policy that behaves the same on average; for a random policy, itself. Plans are optimised for it, so
        that they do not fit the positions at which a deterministic pattern fires on a few pilot trajectories."""
        return self

    def weight_covariance(
        self, p: Float[Array | np.ndarray, "*steps levels"]
    ) -> Float[Array | np.ndarray, "*steps levels levels"] | None:
        """The covariance of the levels' weights in one step, if weights of different steps are uncorrelated; `None` if
        they are correlated or if no formula is known."""
        del p
        return None

    def active_probability(
        self, p: Float[Array | np.ndarray, "*steps levels"]
    ) -> Float[Array | np.ndarray, "*steps levels"] | None:
        """The probability that a level is evaluated, that is, that its weight differs from that of the next finer level
        (from 0 for the finest); `None` if no formula is known."""
        del p
        return None

    def to_dict(self) -> dict[str, Any]:
        """The policy as a dictionary of JSON values, for [`mlem_jax.coins_from_dict`][]. Raises `ValueError` for a
        policy that is not one of mlem_jax's."""
        raise ValueError(
            f"{self.name} is not one of mlem_jax's coin policies and cannot be written to a file."
        )


def as_coins(caller: str, coins: Any) -> AbstractCoins:
    """A coin policy. Raises `ValueError` for anything else, such as the class of a policy."""
    if not isinstance(coins, AbstractCoins):
        raise ValueError(
            f"{caller} needs coins such as mlem_jax.IndependentCoins() and was given {coins!r}. "
            "Write the parentheses: an object is expected, not a class."
        )
    return coins


def as_text(coins: AbstractCoins) -> str:
    """The class and the settings of a policy, with the shapes and dtypes of its arrays. Policies with the same text can
    continue each other's states; it does not depend on whether arrays are traced."""
    return _ADDRESS.sub("", eqx.tree_pformat(coins, width=_ONE_LINE))


def next_finer(p: Any) -> Any:
    """For each level the value of the next finer level, and 0 for the finest: `(..., levels)`."""
    xp = p.__array_namespace__()
    return xp.concat([p[..., 1:], xp.zeros_like(p[..., :1])], axis=-1)


def level_coefficients(weights: Any) -> Any:
    """The coefficients of the levels' drifts, `c_k = w_k - w_{k+1}` (docs/theory.md, "The estimator"): `(...,
    levels)`."""
    return weights - next_finer(weights)


@eqx.filter_jit
def simulate_counts(
    coins: AbstractCoins, p: Float[Array, "steps levels"], keys: Array
) -> Int[Array, "seeds steps levels"]:
    """How many times each level fires in each step of a solve, for each key."""

    def one(key: PRNGKeyArray) -> Int[Array, "steps levels"]:
        def step(state: PyTree, inputs: tuple[Array, Array]) -> tuple[PyTree, Array]:
            count, state = coins.draw(inputs[0], state, inputs[1], key)
            return state, count

        return jax.lax.scan(step, coins.init(p.shape[1]), (p, jnp.arange(p.shape[0])))[1]

    return jax.vmap(one)(keys)
