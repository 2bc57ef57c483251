"""What a choice of probabilities will cost, and the choice that costs a given budget."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .probabilities import AbstractProbabilities

_P = TypeVar("_P", bound=AbstractProbabilities)


def expected_evaluations(probabilities: AbstractProbabilities, ts: ArrayLike) -> Float[Array, " levels"]:
    """Expected unique evaluations of each level in a solve that steps through `ts`.

    Level `k` is evaluated in a step unless neither its coin nor that of level `k + 1` comes up, or both
    always do (theory: `c_k = w_k - w_{k+1}`). Exact for independent coins; for the others up to how
    often firings of adjacent levels happen to coincide.

    **Arguments:** `ts`, the times of the steps, `(N + 1,)`, increasing or decreasing.

    **Returns:** an array `(K,)`, cheapest level first.
    """
    ts = jnp.asarray(ts)
    p = jax.vmap(probabilities)(ts[:-1], jnp.abs(jnp.diff(ts)))
    finer = jnp.concatenate([p[:, 1:], jnp.zeros((p.shape[0], 1), p.dtype)], axis=1)
    either = p + finer - p * finer
    return jnp.sum(jnp.where((p >= 1) & (finer >= 1), 0.0, either), axis=0)


def scale_to_budget(
    family: Callable[[float], _P],
    costs: Sequence[float],
    ts: ArrayLike,
    budget: float,
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

    Raises `ValueError` if no member reaches the budget: below what the rarest looks cost, or above that
    of evaluating the finest level in every step.
    """
    relative = np.asarray(costs) / costs[-1]

    def cost(log_scale: float) -> float:
        return float(np.asarray(expected_evaluations(family(float(np.exp(log_scale))), ts)) @ relative)

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
