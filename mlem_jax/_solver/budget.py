"""The expected cost of probabilities, and the probabilities that have a given cost."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._bisection import bisect
from .._coins import AbstractCoins, IndependentCoins, level_coefficients, simulate_counts
from .._probabilities import AbstractProbabilities
from .method import AbstractMethod, EulerMaruyama

_P = TypeVar("_P", bound=AbstractProbabilities)
# Random policies without a closed form are simulated with this number of keys. The relative standard error of an
# expected number n of firings is then at most 1 / sqrt(128 n).
_SEEDS = 128
# The scale of a family is searched between exp(-20) and exp(20), which covers probabilities from 2e-9 on and rates in
# any usual unit of time, and is determined to a relative 1e-4: a cost is then met to 1e-4.
_LOG_RANGE, _WIDTH = 20.0, 1e-4


def expected_evaluations(
    probabilities: AbstractProbabilities,
    ts: ArrayLike,
    *,
    method: AbstractMethod = EulerMaruyama(),  # noqa: B008 (immutable)
    coins: AbstractCoins = IndependentCoins(),  # noqa: B008 (immutable)
) -> Float[Array, " levels"]:
    """Expected evaluations of each level in a solve that steps through `ts`.

    [`mlem_jax.MLEM`][] evaluates a level where its coefficient `c_k = w_k - w_{k+1}` is not zero (docs/theory.md, "The
    estimator"). [`mlem_jax.MLAB2`][] evaluates the cheapest level in every step, and a second time if level 2 fires.

    **Arguments:**

    - `probabilities`: those of the solver, as an object such as [`mlem_jax.PowerLaw`][].
    - `ts`: the times of the steps, `(N + 1,)`, increasing or decreasing.
    - `method`: how steps are taken, [`mlem_jax.EulerMaruyama`][] or [`mlem_jax.AdamsBashforth`][].
    - `coins`: the coin policy. The result is exact for independent, nested and deterministic coins, and a mean over
        simulated firings for others. With independent coins, the default, it can be differentiated.

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
        active = jnp.mean(level_coefficients(weights) != 0, axis=0, dtype=p.dtype)
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

    - `family`: a function of a positive number that returns probabilities which grow with that number.
    - `costs`: cost of one evaluation of each level in any unit, cheapest first.
    - `ts`: times of the steps, `(N + 1,)`.
    - `budget`: expected cost of the solve, in evaluations of the finest level.
    - `method`, `coins`: as for [`mlem_jax.expected_evaluations`][].

    Raises `ValueError` if no member has this cost: if the budget is below the cost of the rarest firings, or above that
    of the finest level in every step.
    """
    relative = np.asarray(costs) / costs[-1]

    def cost(log_scale: float) -> float:
        member = family(float(np.exp(log_scale)))
        return float(np.asarray(expected_evaluations(member, ts, method=method, coins=coins)) @ relative)

    cheapest, dearest = cost(-_LOG_RANGE), cost(_LOG_RANGE)
    if not cheapest < budget < dearest:
        raise ValueError(
            f"A budget of {budget} finest-level evaluations cannot be met in {len(np.asarray(ts)) - 1} "
            f"steps: these probabilities cost between {cheapest:.3g} and {dearest:.3g}. "
            + ("Take fewer steps." if budget <= cheapest else "Use diffrax.Euler() on the finest level.")
        )
    _, high = bisect(lambda log_scale: cost(log_scale) < budget, -_LOG_RANGE, _LOG_RANGE, width=_WIDTH)
    return family(float(np.exp(high)))
