"""Constant probabilities, and probabilities given by a function of time."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Float

from .._checks import is_concrete
from .._custom_types import Numbers, RealScalarLike
from .base import AbstractProbabilities, as_array, Bounds, check_values, Fixed, fixed_or_data


class ConstantProbabilities(AbstractProbabilities):
    """The same probabilities in every step.

    **Arguments:** `values`, `(K,)` with entries in `(0, 1]`, cheapest level first. A list or a NumPy array is a
    constant, a JAX array is data (except if all its entries are 1).

    Raises `ValueError` for values outside `(0, 1]` or another shape.
    """

    _values: Fixed | Float[Array, " levels"]

    def __init__(self, values: Numbers):
        check_values(values, name="probabilities", limit=1.0)
        if is_concrete(values) and np.all(np.asarray(values) == 1):
            # Ones are constants even in a JAX array: a solve then needs no coins and no branches.
            values = np.asarray(values)
        self._values = fixed_or_data(values)
        shape = self.values.shape
        if len(shape) != 1 or shape[0] == 0:
            raise ValueError(
                "probabilities needs one entry per level, an array of shape (K,), and was given one of "
                f"shape {shape}."
            )

    @property
    def values(self) -> Float[Array, " levels"]:
        """The probabilities, `(K,)`."""
        return as_array(self._values)

    def __call__(self, t: RealScalarLike, h: RealScalarLike) -> Float[Array, " levels"]:
        """See [`mlem_jax.AbstractProbabilities`][]."""
        del t, h
        return self.values

    @property
    def bounds(self) -> Bounds | None:
        """The values."""
        if not isinstance(self._values, Fixed):
            return None
        return self._values.array, self._values.array

    @property
    def constant_in_time(self) -> bool:
        """True."""
        return True

    @property
    def every_step(self) -> bool:
        """Whether all values are 1."""
        return isinstance(self._values, Fixed) and bool(np.all(self._values.array == 1))


class FunctionProbabilities(AbstractProbabilities):
    """Probabilities from a callable `t -> (K,)`. Solvers wrap plain functions in it."""

    function: Callable[[RealScalarLike], Numbers]

    def __call__(self, t: RealScalarLike, h: RealScalarLike) -> Float[Array, " levels"]:
        """See [`mlem_jax.AbstractProbabilities`][]."""
        del h
        return as_array(fixed_or_data(self.function(t)))
