"""How far `MLAB2` extrapolates the drift from its last step."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from .state import LastStep

# On a smooth grid the factor is the ratio r of a step's length to the last one's, as in the Adams-Bashforth method. On
# other grids the difference of two drifts is dominated by noise, or by a jump. With additive noise and a drift -a x,
# factors q_n leave the variance a^2 sum_n h_n (h_n - h_{n+1} q_{n+1})^2 / 4, which is least for q = 1 / r. Therefore
# the factor falls from r towards 1 / r if r is above `_LARGEST_RATIO`, or above the last step's factor by more than
# `_LARGEST_CHANGE`. On dx = -5 x dt + dW, x = 1 at t = 0 and regular grids of 20 steps on [0, 1] with 1, 4 and 20
# random times merged into them, the error of MLAB2 is then at most 1.06, 1.18 and 1.2 times that of Euler (150 grids
# each, from the second moments of both), and on grids of 24 steps that alternate in length at most 1.04 times. Grids
# like t^1.5, and Karras' of 4 and more steps in the logarithm of the time, are smooth.
_LARGEST_RATIO = 1.52
_LARGEST_CHANGE = 1.2
# For the second step, which has no last factor to compare with.
_LARGEST_FIRST_RATIO = 1.85


def extrapolation_factor(length: Array, last: LastStep, made_jump: Any) -> Array:
    """The ratio of this step's length to the last one's, or less, down to its inverse, if the grid is not smooth; zero
    if there is no last drift or if the state has jumped since."""
    useful = (length > 0) & (last.length > 0) & ~jnp.asarray(made_jump)
    ratio = jnp.where(useful, length / jnp.where(useful, last.length, 1), 1)
    first = last.factor == 0
    kept = jnp.where(first, ratio, jnp.minimum(ratio, _LARGEST_CHANGE * last.factor))
    largest = jnp.where(first, _LARGEST_FIRST_RATIO, _LARGEST_RATIO).astype(ratio.dtype)
    kept = jnp.where(ratio > largest, jnp.minimum(kept, largest**2 / ratio), kept)
    return jnp.where(useful, jnp.maximum(kept, jnp.minimum(ratio, 1 / ratio)), 0)
