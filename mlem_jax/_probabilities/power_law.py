"""Probabilities that decrease with the cost of a level: the paper's choice."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import is_concrete
from .._custom_types import Numbers, RealScalarLike
from .base import AbstractProbabilities, as_array, Bounds, check_values, Fixed, fixed_or_data


class PowerLaw(AbstractProbabilities):
    r"""Probabilities that decrease as a power of a level's cost.

    $p_k = \min\bigl(1, s (c_k / c_1)^{-(1/\gamma + 1/2)}\bigr)$ with the scale $s$. For costs $c_k \sim 2^{\gamma k}$
    this is the paper's $\min(1, C 2^{-(1 + \gamma/2) k})$ (Jacot 2026), the optimum for independent coins if the error
    of level $k$ decreases as $c_k^{-1/\gamma}$.

    **Arguments:**

    - `costs`: cost of one evaluation of each level, in any unit, cheapest first.
    - `scale`: a scalar that sets the total cost. With `scale >= 1` level 1 always fires.
    - `gamma`: the exponent of cost against accuracy. The paper measured about 2.5 for UNets.

    Raises `ValueError` unless costs, scale and gamma are positive.
    """

    _costs: Fixed | Float[Array, " levels"]
    _scale: Fixed | Float[Array, ""]
    _gamma: Fixed | Float[Array, ""]

    def __init__(self, costs: Numbers, *, scale: Numbers = 1.0, gamma: Numbers = 2.5):
        for name, value in (("costs", costs), ("scale", scale), ("gamma", gamma)):
            check_values(value, name=f"PowerLaw {name}", limit=np.finfo(np.float64).max)
        self._costs, self._scale, self._gamma = map(fixed_or_data, (costs, scale, gamma))
        if self.costs.ndim != 1 or (is_concrete(costs) and np.any(np.diff(np.asarray(costs, float)) < 0)):
            raise ValueError(
                "PowerLaw needs one cost per level, an array of shape (K,), cheapest first, and was given "
                f"{costs}."
            )

    @property
    def costs(self) -> Float[Array, " levels"]:
        """Cost of one evaluation of each level."""
        return as_array(self._costs)

    @property
    def scale(self) -> Float[Array, ""]:
        """The probability that the first level would have without the bound of 1."""
        return as_array(self._scale).astype(self.costs.dtype)

    @property
    def gamma(self) -> Float[Array, ""]:
        """The exponent."""
        return as_array(self._gamma).astype(self.costs.dtype)

    def __call__(self, t: RealScalarLike, h: RealScalarLike) -> Float[Array, " levels"]:
        """See [`mlem_jax.AbstractProbabilities`][]."""
        del t, h
        relative = self.costs / self.costs[0]
        return jnp.minimum(1, self.scale * relative ** -(1 / self.gamma + 0.5))

    @property
    def bounds(self) -> Bounds | None:
        """The values."""
        numbers = [x.array for x in (self._costs, self._scale, self._gamma) if isinstance(x, Fixed)]
        if len(numbers) < 3:
            return None
        costs, scale, gamma = numbers
        values = np.minimum(1, scale * (costs / costs[0]) ** -(1 / gamma + 0.5))
        return values, values

    @property
    def constant_in_time(self) -> bool:
        """True."""
        return True
