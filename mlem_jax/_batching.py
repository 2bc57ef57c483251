"""What survives `vmap`: the only file that uses `equinox.internal`.

A `lax.cond` whose predicate is batched turns into a select that runs both branches. So everything
that decides whether a level is evaluated is kept free of batch dimensions here, or refused.
"""

import equinox.internal as eqxi
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped


def _lowest(dtype: jnp.dtype) -> Array:
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.asarray(-jnp.inf, dtype)
    return jnp.asarray(jnp.iinfo(dtype).min, dtype)


def across_batch(
    x: Shaped[Array, " k"], current: Bool[Array, ""]
) -> tuple[Shaped[Array, " k"], Bool[Array, ""]]:
    """The value of `x` in the batch elements where `current` holds, without batch dimensions; and
    whether they all have that value.

    Free of cost where nothing is batched. Inside a batched loop (events, a batched `t1`) elements
    that have finished are frozen: `current` leaves them out.
    """
    highest, lowest = [], []
    for i in range(x.shape[0]):
        highest.append(eqxi.unvmap_max(jnp.where(current, x[i], _lowest(x.dtype))))
        lowest.append(-eqxi.unvmap_max(jnp.where(current, -x[i], _lowest(x.dtype))))
    high, low = jnp.stack(highest), jnp.stack(lowest)
    return high, jnp.all(high == low)


def furthest(step: Int[Array, ""]) -> Bool[Array, ""]:
    """Whether this batch element is one of those still running: its step counter is the largest."""
    return step == eqxi.unvmap_max(step)


def any_in_batch(x: Bool[Array, " k"]) -> Bool[Array, " k"]:
    """`x`, or-ed over all batch dimensions."""
    return jnp.stack([eqxi.unvmap_any(x[i]) for i in range(x.shape[0])])


def refuse_batch(x: Array, message: str) -> Array:
    """`x`, or a `ValueError` with this message at trace time if it has a batch dimension."""
    return eqxi.nonbatchable(x, msg=message)


def refuse_gradient(x: Array, message: str) -> Array:
    """`x`, or a `RuntimeError` with this message at trace time if it is differentiated."""
    return eqxi.nondifferentiable(x, msg=message)
