"""Expected firings per unit time."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._custom_types import Numbers, RealScalarLike
from .base import AbstractProbabilities, as_array, check_values, Fixed, fixed_or_data
from .constant import FunctionProbabilities
from .power_law import PowerLaw


class Rates(AbstractProbabilities):
    """Expected firings per unit time instead of per step: `p_k = min(1, rate_k(t) * h)`. The cost then does not grow
    when the step size is reduced.

    **Arguments:** `rates`, one of: an array `(K,)` of positive rates; a callable `t -> (K,)`; a
    [`mlem_jax.TabulatedProbabilities`][] whose values are rates. With a large rate (`jnp.inf` is allowed) a level fires
    in every step.

    Raises `ValueError` for rates that are not positive.
    """

    rates: AbstractProbabilities | Fixed | Float[Array, " levels"]

    def __init__(self, rates: "Numbers | AbstractProbabilities | Callable[[RealScalarLike], Numbers]"):
        if isinstance(rates, PowerLaw | Rates):
            raise ValueError(
                f"Rates was given a {type(rates).__name__}, whose values are probabilities, never above 1. "
                "Write the rates themselves: an array (K,), a callable t -> (K,), or "
                "TabulatedProbabilities."
            )
        if isinstance(rates, AbstractProbabilities):
            self.rates = rates
        elif callable(rates):
            self.rates = FunctionProbabilities(rates)
        else:
            check_values(rates, name="rates", limit=np.inf)
            self.rates = fixed_or_data(rates)

    def __call__(self, t: RealScalarLike, h: RealScalarLike) -> Float[Array, " levels"]:
        """See [`mlem_jax.AbstractProbabilities`][]."""
        rates = self.rates(t, h) if isinstance(self.rates, AbstractProbabilities) else as_array(self.rates)
        return jnp.minimum(1, rates * jnp.asarray(h).astype(rates.dtype))
