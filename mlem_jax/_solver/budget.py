"""What a choice of probabilities will cost, and the choice that costs a given budget."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._coins import AbstractCoins, IndependentCoins, simulate_counts
from .._coins.base import next_finer
from .._probabilities import AbstractProbabilities
from .method import AbstractMethod, EulerMaruyama

_P = TypeVar("_P", bound=AbstractProbabilities)
# The mean over keys of a random policy without a closed form; its relative standard error is then at most
# 1 / sqrt(128 n) for n firings.
_SEEDS = 128


def expected_evaluations(
    probabilities: AbstractProbabilities,
    ts: ArrayLike,
    *,
    method: AbstractMethod = EulerMaruyama(),  # noqa: B008 (immutable)
    coins: AbstractCoins = IndependentCoins(),  # noqa: B008 (immutable)
) -> Float[Array, " levels"]:
    """Expected evaluations of each level in a solve that steps through `ts`.

    [`mlem_jax.MLEM`][] evaluates a level where its coefficient `c_k = w_k - w_{k+1}` is not zero (theory, section 1).
    [`mlem_jax.MLAB2`][] evaluates the cheapest level in every step, and once more where the next one fires.

    **Arguments:**

    - `probabilities`: one of mlem_jax's, as the solver gets them.
    - `ts`: the times of the steps, `(N + 1,)`, increasing or decreasing.
    - `method`: of the steps, [`mlem_jax.EulerMaruyama`][] or [`mlem_jax.AdamsBashforth`][].
    - `coins`: the policy. Exact for independent, nested and deterministic coins; for the others a mean over simulated
        firings. With the default, independent coins, the result can be differentiated.

    **Returns:** an array `(K,)`, cheapest level first.
    """
    ts = jnp.asarray(ts)
    p = jax.vmap(probabilities)(ts[:-1], jnp.abs(jnp.diff(ts)))
    if probabilities.every_step:
        return jnp.zeros(p.shape[1], p.dtype).at[-1].set(p.shape[0])
    active, fired = coins.active_probability(p), p
    if active is None:
        keys = jr.split(jr.key(0), 1 if coins.deterministic else _SEEDS)
        counts = simulate_counts(coins, p, keys)
        weights = counts.astype(p.dtype) / p[None]
        active = jnp.mean(weights != next_finer(weights), axis=0, dtype=p.dtype)
        fired = jnp.mean(counts > 0, axis=0, dtype=p.dtype)
    return jnp.sum(method.evaluations(active, fired), axis=0)


def scale_to_budget(
    family: Callable[[float], _P],
    costs: Sequence[float],
    ts: ArrayLike,
    budget: float,
    *,
    method: AbstractMethod = EulerMaruyama(),  # noqa: B008 (immutable)
    coins: AbstractCoins = IndependentCoins(),  # noqa: B008 (immutable)
) -> _P:
    """The member of a one-parameter family of probabilities that costs `budget`.

    !!! example

        ```python
        scale_to_budget(lambda c: PowerLaw(costs, scale=c), costs, ts, budget=12)
        ```

    **Arguments:**

    - `family`: a positive number -> probabilities, growing with it.
    - `costs`: cost of one evaluation of each level in any unit, cheapest first.
    - `ts`: times of the steps, `(N + 1,)`.
    - `budget`: expected cost of the solve, in evaluations of the finest level.
    - `method`, `coins`: as for [`mlem_jax.expected_evaluations`][].

    Raises `ValueError` if no member reaches the budget: below what the rarest looks cost, or above that
    of evaluating the finest level in every step.
    """
    relative = np.asarray(costs) / costs[-1]

    def cost(log_scale: float) -> float:
        member = family(float(np.exp(log_scale)))
        return float(np.asarray(expected_evaluations(member, ts, method=method, coins=coins)) @ relative)

    low, high = -20.0, 20.0
    cheapest, dearest = cost(low), cost(high)
    if not cheapest < budget < dearest:
        raise ValueError(
            f"A budget of {budget} finest-level evaluations cannot be met in {len(np.asarray(ts)) - 1} "
            f"steps: these probabilities cost between {cheapest:.3g} and {dearest:.3g}. "
            + ("Take fewer steps." if budget <= cheapest else "Use diffrax.Euler() on the finest level.")
        )
    while high - low > 1e-4:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if cost(middle) < budget else (low, middle)
    return family(float(np.exp(high)))
