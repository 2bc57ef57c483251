"""Values without batch dimensions under `vmap`: the only file that uses `equinox.internal` and JAX primitives.

A `lax.cond` with a batched predicate becomes a select that runs both branches. Therefore all values that decide whether
a level is evaluated are reduced here to values without batch dimensions, or refused.
"""

from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import Array, Bool, Int, PyTree, Shaped

# The value of arrays in the batch elements that are current, without batch dimensions. Without a batch this is the
# identity; each vmap reduces over its own axis. The operands and results are the arrays and `current`.
_from_current = Primitive("mlem_from_current")
_from_current.multiple_results = True


@_from_current.def_impl
def _identity(*arrays_and_current: Any) -> list[Any]:
    return list(arrays_and_current)


_from_current.def_abstract_eval(lambda *avals: list(avals))
mlir.register_lowering(_from_current, mlir.lower_fun(_identity, multiple_results=True))


def _reduce_batch(inputs: Any, axes: Any) -> tuple[list[Any], list[Any]]:
    """All current elements agree (or the caller checks that they do), so their maximum is the value of each. A
    reduction also works on an axis that is sharded over devices, which an index would not."""
    *arrays, current = inputs
    *array_axes, current_axis = axes
    found = []
    for array, axis in zip(arrays, array_axes, strict=True):
        if axis is None:
            found.append(array)
            continue
        array = jnp.moveaxis(array, axis, 0)
        mask = current
        if current_axis is not None:
            mask = jnp.moveaxis(current, current_axis, 0).reshape(-1, *[1] * (array.ndim - 1))
        found.append(jnp.max(jnp.where(mask, array, _lowest(array.dtype)), axis=0))
    if current_axis is not None:
        current = jnp.any(current, axis=current_axis)
    outputs = _from_current.bind(*found, current)
    return outputs, [None] * len(outputs)


batching.primitive_batchers[_from_current] = _reduce_batch


def _lowest(dtype: Any) -> Array:
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.asarray(-jnp.inf, dtype)
    if dtype == jnp.bool_:
        return jnp.asarray(False)
    return jnp.asarray(jnp.iinfo(dtype).min, dtype)


def from_current(x: PyTree[Array], current: Bool[Array, ""]) -> PyTree[Array]:
    """The value of `x`, a PyTree of arrays of any shape and dtype, in the batch elements in which `current` is true,
    without batch dimensions. These elements must agree.

    It costs nothing if nothing is batched. In a batched loop (events, a batched `t1`) finished elements are frozen, and
    `current` is false for them.
    """
    arrays, rest = eqx.partition(jtu.tree_map(_as_array, x), eqx.is_array)
    leaves, structure = jtu.tree_flatten(arrays)
    parts = [_split(leaf) for leaf in leaves]
    flat = [part for pieces in parts for part in pieces]
    flat = _from_current.bind(*jax.lax.stop_gradient(flat), current)[:-1]
    found = []
    for leaf, pieces in zip(leaves, parts, strict=True):
        found.append(_joined(leaf, flat[: len(pieces)]))
        flat = flat[len(pieces) :]
    return eqx.combine(jtu.tree_unflatten(structure, found), rest)


def _as_array(x: Any) -> Any:
    return jnp.asarray(x) if eqx.is_array_like(x) else x


def _split(leaf: Array) -> list[Array]:
    """A complex array or random keys as arrays whose elements are ordered."""
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return [leaf.real, leaf.imag]
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return [jax.random.key_data(leaf)]
    return [leaf]


def _joined(leaf: Array, pieces: list[Array]) -> Array:
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return jax.lax.complex(*pieces)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(pieces[0], impl=jax.random.key_impl(leaf))
    return pieces[0]


def across_batch(
    x: Shaped[Array, " k"], current: Bool[Array, ""]
) -> tuple[Shaped[Array, " k"], Bool[Array, ""]]:
    """The value of `x` in the batch elements in which `current` is true, without batch dimensions; and whether all of
    them have that value."""
    shared = from_current(x, current)
    return shared, ~eqxi.unvmap_any(current & jnp.any(x != shared))


def furthest(step: Int[Array, ""]) -> Bool[Array, ""]:
    """Whether this batch element is still running, that is, has the largest step counter of the batch."""
    return step == eqxi.unvmap_max(step)


def any_in_batch(x: Bool[Array, " k"]) -> Bool[Array, " k"]:
    """`x`, or-ed over all batch dimensions."""
    return jnp.stack([eqxi.unvmap_any(x[i]) for i in range(x.shape[0])])


def all_in_batch(x: Bool[Array, ""]) -> Bool[Array, ""]:
    """`x`, and-ed over all batch dimensions."""
    return ~eqxi.unvmap_any(~x)


def on_explicit_mesh() -> bool:
    """Whether arrays are sharded over a mesh of devices with explicit axes (`jax.set_mesh`)."""
    return jax.sharding.AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def refuse_batch(x: Array, message: str) -> Array:
    """`x`; raises `ValueError` with this message at trace time if `x` has a batch dimension."""
    return eqxi.nonbatchable(x, msg=message)


def refuse_gradient(x: Array, message: str) -> Array:
    """`x`; raises `RuntimeError` with this message at trace time if `x` is differentiated."""
    return eqxi.nondifferentiable(x, msg=message)
