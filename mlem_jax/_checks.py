"""Checks of what users pass: keys, whole and positive numbers, grids of times, costs.

The first argument of each function is the name of its caller, for the message. Of values that are traced by JAX only
the shape and dtype are checked.
"""

import numbers
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from ._custom_types import Numbers


def is_concrete(x: Any) -> bool:
    """Whether all numbers in `x`, an array or nested lists of numbers, are known at trace time."""
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
    """A whole number from `least` on, of any integer type. Raises `ValueError` for any other value; `expected` replaces
    the second half of its message."""
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


def as_positive(caller: str, value: Any, *, name: str, example: str | None = None) -> float:
    """A positive finite number. Raises `ValueError` for any other value; the message may give an `example`."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    scalar = isinstance(value, np.ndarray | jax.Array) and value.ndim == 0
    if not ((number or scalar) and 0 < float(value) < np.inf):
        hint = "" if example is None else f", for example {example}"
        raise ValueError(f"{caller} was given {name}={value!r}; a positive number is expected{hint}.")
    return float(value)


def as_grid(caller: str, ts: Numbers, *, name: str = "ts", fewest: int = 1) -> Float[Array, " times"]:
    """Times `(N + 1,)` that increase or decrease strictly, with `N` at least `fewest`, as a floating-point JAX array.
    Raises `ValueError` for any others."""
    array = jnp.asarray(ts)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.result_type(float))
    check_grid(caller, ts, name=name, fewest=fewest)
    return array


def check_grid(caller: str, ts: Numbers, *, name: str = "ts", fewest: int = 1) -> None:
    """Raises `ValueError` unless times `(N + 1,)` increase or decrease strictly, with `N` at least `fewest`."""
    shape = np.shape(ts)
    if len(shape) != 1 or shape[0] < fewest + 1:
        least = "" if fewest == 1 else f", at least {fewest + 1} of them"
        raise ValueError(
            f"{caller} was given {name} of shape {shape}; times of shape (N + 1,) are expected{least}, for "
            "example jnp.linspace(t0, t1, 65)."
        )
    check_monotone(caller, ts, name=name)


def check_monotone(caller: str, ts: Numbers, *, name: str = "ts") -> None:
    """Raises `ValueError` unless times increase or decrease strictly in the precision in which JAX computes."""
    if not is_concrete(ts):
        return
    steps = np.diff(np.asarray(ts, jnp.result_type(float)))
    # NaN fails both comparisons.
    if not (np.all(steps > 0) or np.all(steps < 0)):
        raise ValueError(
            f"{caller} needs strictly increasing or strictly decreasing {name} and was given {np.asarray(ts)}."
        )


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


def counted(number: int, noun: str) -> str:
    """A number with a noun in the singular or plural."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
