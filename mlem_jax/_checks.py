"""Checks of what users pass, in one place: keys, whole numbers, grids of times, costs.

Every function takes the name of its caller first, so that a message says who raised it, and returns the checked value.
Values that are traced by JAX pass, where only their shape can be checked.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from ._custom_types import Numbers


def is_concrete(x: Any) -> bool:
    """Whether all numbers in `x`, an array or nested lists of numbers, are known now."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(x))


def as_key(caller: str, key: Any, *, name: str = "key") -> PRNGKeyArray:
    """One random key: `jax.random.key(...)`, or the older `jax.random.PRNGKey(...)`. Raises `ValueError` for a number,
    an array of keys or anything else."""
    if isinstance(key, int | np.integer) or (
        isinstance(key, np.ndarray | jax.Array)
        and key.ndim == 0
        and jnp.issubdtype(key.dtype, jnp.integer)
        and is_concrete(key)
    ):
        raise ValueError(f"{caller} was given {name}={key}; write {name}=jax.random.key({int(key)}).")
    if isinstance(key, np.ndarray | jax.Array):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            if key.ndim == 0:
                return jnp.asarray(key)
            raise ValueError(
                f"{caller} was given {name} with {key.shape} keys; one key is expected. Write {name}=keys[i], or map "
                "over the keys with jax.vmap."
            )
        if key.dtype == jnp.uint32 and key.ndim == 1:
            return jnp.asarray(key)
    raise ValueError(
        f"{caller} was given {name}={key!r}; a random key is expected: {name}=jax.random.key(0)."
    )


def as_int(caller: str, value: Any, *, name: str, least: int = 1, expected: str | None = None) -> int:
    """A whole number from `least` on, of any integer type. Raises `ValueError` for another value; the message says
    what is `expected`, by default a whole number from `least` on."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        expected = f"a whole number from {least} on is expected" if expected is None else expected
        raise ValueError(f"{caller} was given {name}={value!r}; {expected}.") from None
    return number


def as_grid(caller: str, ts: Numbers, *, name: str = "ts", fewest: int = 1) -> Float[Array, " times"]:
    """Times `(N + 1,)` that increase or decrease strictly, `N` at least `fewest`, as a floating-point JAX array. Raises
    `ValueError` otherwise; of traced times only the shape is checked."""
    array = jnp.asarray(ts)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.result_type(float))
    if array.ndim != 1 or len(array) < fewest + 1:
        least = "" if fewest == 1 else f", at least {fewest + 1} of them"
        raise ValueError(
            f"{caller} was given {name} of shape {array.shape}; times of shape (N + 1,) are expected{least}, for "
            "example jnp.linspace(t0, t1, 65)."
        )
    if is_concrete(array):
        steps = np.diff(np.asarray(array, float))
        # A comparison that NaN fails, too.
        if not (np.all(steps > 0) or np.all(steps < 0)):
            raise ValueError(
                f"{caller} needs strictly increasing or strictly decreasing {name} and was given {array}."
            )
    return array


def as_costs(caller: str, costs: Any, num_levels: int) -> Float[np.ndarray, " levels"]:
    """The costs of the levels as numpy numbers. Raises `ValueError` unless there is one positive finite number per
    level, in increasing order."""
    try:
        array = np.asarray(costs, float)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if (
        array.shape != (num_levels,)
        or not np.all((array > 0) & np.isfinite(array))
        or np.any(np.diff(array) < 0)
    ):
        raise ValueError(
            f"{caller} has {num_levels} levels and was given costs={costs}. One positive number per level is expected, "
            "cheapest level first."
        )
    return array
