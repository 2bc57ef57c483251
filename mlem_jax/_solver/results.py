"""The result of a solve whose state becomes infinite or NaN."""

from typing import Any, cast

import diffrax
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool

from .._batching import all_in_batch, on_explicit_mesh
from .._custom_types import Y

_MESSAGE = (
    "{} computed a state that is not finite. Solve with diffrax.Euler() on the same terms to see whether the finest "
    "level alone does so too; if not, a cheaper level does. Write check_finite=False to let infinity and NaN pass, as "
    "Euler does, or diffeqsolve(..., throw=False) to continue with the other trajectories of a batch."
)


def not_finite(solver: str, y0: Y, y1: Y) -> diffrax.RESULTS:
    """The result of a step from `y0` to `y1`: a failure if `y0` is finite and `y1` is not. A state that is not finite
    from the start is accepted, as in diffrax. Under a `vmap` over an explicit axis of a mesh the result is a failure
    only if this holds for all trajectories."""
    name = f"{solver.lower()}_not_finite"
    failure = _registered(name, _MESSAGE.format(solver))
    turned = _bad(y1) & ~_bad(y0)
    if on_explicit_mesh():
        # JAX 0.10 cannot batch a loop there whose trajectories end at different steps.
        turned = all_in_batch(turned)
    return diffrax.RESULTS.where(turned, failure, diffrax.RESULTS.successful)


def _bad(y: Y) -> Bool[Array, ""]:
    # The sum is NaN if any entry is NaN or infinite. This is faster than a test of each entry.
    sums = [jnp.sum(jnp.zeros_like(leaf) * leaf) for leaf in jtu.tree_leaves(jax.lax.stop_gradient(y))]
    return ~jnp.all(jnp.stack([jnp.isfinite(s) for s in sums]))


def _registered(name: str, message: str) -> diffrax.RESULTS:
    """A member of `diffrax.RESULTS` with its own message, which is added to the enumeration at the first call. Solvers
    can only return members of this enumeration, and the message of `nonfinite` does not say what to do."""
    members, messages = diffrax.RESULTS._name_to_item, diffrax.RESULTS._index_to_message
    if name not in members:
        item: Any = type(diffrax.RESULTS.successful)
        members[name] = item(np.array(len(messages), np.int32), diffrax.RESULTS)
        messages.append(message)
    return cast(diffrax.RESULTS, members[name])
