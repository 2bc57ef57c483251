"""Bisection of a bracket: on Python numbers, and inside compiled code."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def bisect(holds: Callable[[float], bool], low: float, high: float, *, width: float) -> tuple[float, float]:
    """Narrows a bracket to at most `width`: `holds` is true at its lower end and false at its upper end. The ends
    themselves are not tested."""
    while high - low > width:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, high


def bisect_compiled(
    holds: Callable[[Float[Array, ""]], Bool[Array, ""]],
    low: Float[Array, ""],
    high: Float[Array, ""],
    *,
    halvings: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """As `bisect`, with a fixed number of halvings."""

    def halve(_: Int[Array, ""] | int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        lower = holds(middle)
        return jnp.where(lower, middle, low), jnp.where(lower, high, middle)

    return jax.lax.fori_loop(0, halvings, halve, (low, high))
