"""The lower envelope of measured points of error against cost, and the cost at a given error on it."""

import numpy as np
from jaxtyping import Float


def envelope(
    cost: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """The points whose error is smaller than those of all points that cost as little, by increasing cost."""
    order = np.lexsort((error, cost))
    kept = [i for n, i in enumerate(order) if n == 0 or error[i] < error[order[:n]].min()]
    return cost[kept], error[kept]


def cost_to_reach(cost: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"], target: float) -> float:
    """The cost at which an envelope reaches an error, interpolated on logarithmic axes. It is that of the cheapest
    point if that reaches the error, and infinite if no point does."""
    if not len(cost) or target < error[-1]:
        return np.inf
    return float(np.exp(np.interp(-np.log(target), -np.log(error), np.log(cost))))
