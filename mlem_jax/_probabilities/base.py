"""The base class of probabilities: how often each level fires per step.

Probabilities are deterministic functions of time and step length. Coin policies turn them into firings.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from .._checks import is_concrete
from .._custom_types import Numbers, RealScalarLike

Bounds = tuple[Float[np.ndarray, " levels"], Float[np.ndarray, " levels"]]


class AbstractProbabilities(eqx.Module):
    """The probability with which each level fires in a step; `p_k` belongs to the increment `D_k = f^k - f^{k-1}`.

    Python and NumPy numbers are constants of the program, like a number of steps. They have no gradient, `vmap` does
    not map them, and a solver that contains them can be hashed. JAX arrays are data: one compiled program serves all
    their values.
    """

    @abc.abstractmethod
    def __call__(self, t: RealScalarLike, h: RealScalarLike) -> Float[Array, " levels"]:
        """**Arguments:** `t`, the time at the start of the step, and `h`, its positive length.

        **Returns:** an array `(K,)`, cheapest level first, with entries in `(0, 1]`.
        """

    @property
    def bounds(self) -> Bounds | None:
        """The least and the greatest value of each level over all times and step lengths, `(K,)` each, if the numbers
        are constants. Otherwise `None`; a solve then checks the values at run time."""
        return None

    @property
    def constant_in_time(self) -> bool:
        """Whether the values are known to be the same for all times and step lengths."""
        return False

    @property
    def every_step(self) -> bool:
        """Whether all levels are known at trace time to have probability 1 in every step. A solve then evaluates the
        finest level alone."""
        return False


class Fixed(eqx.Module):
    """Constants of the program: a PyTree without leaves, which can be hashed and compared."""

    data: bytes = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: str = eqx.field(static=True)

    @classmethod
    def of(cls, array: np.ndarray) -> "Fixed":
        """The numbers of an array, of the same type."""
        return cls(array.tobytes(), array.shape, array.dtype.name)

    @property
    def array(self) -> np.ndarray:
        """The numbers."""
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


def fixed_or_data(x: Any) -> Fixed | Array:
    """Python and NumPy numbers as constants, JAX arrays (and lists that contain one) as data. Both are floating; an
    array keeps its dtype."""
    if any(isinstance(leaf, jax.Array) for leaf in jtu.tree_leaves(x)):
        x = jnp.asarray(x)
        return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))
    array = np.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        # In double precision, because costs in FLOPs overflow JAX's 32-bit integers.
        array = array.astype(float)
    return Fixed.of(array)


def as_array(x: Fixed | Array) -> Array:
    """The numbers of `fixed_or_data` as a JAX array."""
    return jnp.asarray(x.array) if isinstance(x, Fixed) else x


def check_values(values: Numbers, *, name: str, limit: float) -> None:
    """Raises `ValueError` unless all values lie in `(0, limit]`. Traced values are not checked."""
    if not is_concrete(values):
        return
    array = np.asarray(values)
    if not jnp.issubdtype(array.dtype, jnp.number):
        raise ValueError(
            f"{name} must be numbers, one per level, and was given {values!r}. Write an array such as "
            "[1.0, 0.2, 0.05], cheapest level first."
        )
    if np.any(array == 0):
        raise ValueError(
            f"{name} has a zero: {array}. A level that is never evaluated cannot be corrected for, so the result would "
            "be that of another drift. Leave the level out of MultilevelTerm instead."
        )
    if not np.all((array > 0) & (array <= limit)):
        bound = "in (0, 1]" if limit == 1 else "positive and finite"
        raise ValueError(
            f"{name} must be {bound} and was given {array}. For an expected number of firings per unit time "
            "write mlem_jax.Rates(...)."
        )
