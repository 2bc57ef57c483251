"""Probabilities on a grid of times."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_monotone
from .._custom_types import Numbers, RealScalarLike
from .base import AbstractProbabilities, as_array, Bounds, check_values, Fixed, fixed_or_data


class TabulatedProbabilities(AbstractProbabilities):
    """Probabilities on a grid of times, interpolated linearly between them.

    Outside the grid the values at its nearest end hold.

    **Arguments:**

    - `ts`: times `(N,)`, strictly increasing or strictly decreasing.
    - `values`: an array `(N, K)` with entries in `(0, 1]`, cheapest level first; inside
        [`mlem_jax.Rates`][] positive rates instead.

    Raises `ValueError` for other shapes, for times that are not monotone and for values out of range.
    """

    _ts: Fixed | Float[Array, " times"]
    _values: Fixed | Float[Array, "times levels"]

    def __init__(self, ts: Numbers, values: Numbers):
        self._ts, self._values = fixed_or_data(ts), fixed_or_data(values)
        if self.ts.ndim != 1 or self.values.ndim != 2 or len(self.ts) != len(self.values):
            raise ValueError(
                "TabulatedProbabilities needs ts of shape (N,) and values of shape (N, K), and was "
                f"given {self.ts.shape} and {self.values.shape}."
            )
        check_values(values, name="TabulatedProbabilities values", limit=np.finfo(np.float64).max)
        # `ts` and not `self.ts`, which is a tracer inside jit even where `ts` is known.
        check_monotone("TabulatedProbabilities", ts)

    @property
    def ts(self) -> Float[Array, " times"]:
        """The times, `(N,)`."""
        return as_array(self._ts)

    @property
    def values(self) -> Float[Array, "times levels"]:
        """The values at the times, `(N, K)`."""
        return as_array(self._values)

    def __call__(self, t: RealScalarLike, h: RealScalarLike) -> Float[Array, " levels"]:
        """See [`mlem_jax.AbstractProbabilities`][]."""
        del h
        increasing = self.ts[0] <= self.ts[-1]
        ts = jnp.where(increasing, self.ts, self.ts[::-1])
        values = jnp.where(increasing, self.values, self.values[::-1])
        t = jnp.asarray(t).astype(ts.dtype)
        return jax.vmap(lambda column: jnp.interp(t, ts, column), in_axes=1)(values)

    @property
    def bounds(self) -> Bounds | None:
        """The least and the greatest value of each column."""
        if not isinstance(self._values, Fixed):
            return None
        return self._values.array.min(0), self._values.array.max(0)
