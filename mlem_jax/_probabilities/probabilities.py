"""How often each level is looked at: probabilities per step, or rates per unit time.

Nothing here is random and nothing knows a level; see `_coins.py` for what is made of them.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .._custom_types import Numbers, RealScalarLike


def _is_concrete(x: Numbers) -> bool:
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(x))


def _default_float(x: Any) -> Array:
    if _is_concrete(x):
        # Through numpy, because JAX's integers are too short for costs in FLOPs.
        array = np.asarray(x)
        x = array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


def check_values(values: Numbers, *, name: str, limit: float) -> None:
    """Raises `ValueError` unless all values lie in `(0, limit]`; says nothing about traced ones."""
    if not _is_concrete(values):
        return
    array = np.asarray(values)
    if not jnp.issubdtype(array.dtype, jnp.number):
        raise ValueError(
            f"{name} must be numbers, one per level, and was given {values!r}. Write an array such as "
            "[1.0, 0.2, 0.05], cheapest level first."
        )
    if np.any(array == 0):
        raise ValueError(
            f"{name} has a zero: {array}. A level that is never looked at cannot be corrected for, so "
            "the result would be that of another drift. Leave the level out of MultilevelTerm instead."
        )
    if not np.all((array > 0) & (array <= limit)):
        bound = "in (0, 1]" if limit == 1 else "positive and finite"
        raise ValueError(
            f"{name} must be {bound} and was given {array}. For an expected number of evaluations per "
            "unit time write mlem_jax.Rates(...)."
        )


class AbstractProbabilities(eqx.Module):
    """The probability of looking at each level in a step; `p_k` belongs to the increment
    `D_k = f^k - f^{k-1}`."""

    @abc.abstractmethod
    def __call__(self, t: RealScalarLike, h: RealScalarLike) -> Float[Array, " levels"]:
        """**Arguments:** `t`, the time at the start of the step, and `h`, its positive length.

        **Returns:** an array `(K,)`, cheapest level first, with entries in `(0, 1]`.
        """

    @property
    def every_step(self) -> bool:
        """Whether it is known without running anything that all levels have probability 1 in every step. A solve then
        evaluates the finest level alone."""
        return False


class ConstantProbabilities(AbstractProbabilities):
    """The same probabilities in every step.

    **Arguments:** `values`, an array `(K,)` with entries in `(0, 1]`, cheapest level first.

    Raises `ValueError` for anything else.
    """

    values: Float[Array, " levels"]

    def __init__(self, values: Numbers):
        check_values(values, name="probabilities", limit=1.0)
        self.values = _default_float(values)
        if self.values.ndim != 1 or self.values.size == 0:
            raise ValueError(
                "probabilities needs one entry per level, an array of shape (K,), and was given one of "
                f"shape {self.values.shape}."
            )

    def __call__(self, t: RealScalarLike, h: RealScalarLike) -> Float[Array, " levels"]:
        del t, h
        return self.values


class EveryStep(AbstractProbabilities):
    """Probability 1 for all levels, known without running anything: what [`mlem_jax.MLEM`][] makes of an array of
    ones. A solve then needs no coins and no branches."""

    num_levels: int = eqx.field(static=True)

    @property
    def every_step(self) -> bool:
        """True."""
        return True

    def __call__(self, t: RealScalarLike, h: RealScalarLike) -> Float[Array, " levels"]:
        del t, h
        return jnp.ones(self.num_levels)


class PowerLaw(AbstractProbabilities):
    r"""Probabilities that fall with the cost of a level as a power.

    `p_k = min(1, scale * (c_k / c_1) ** -(1/gamma + 1/2))`, which for costs `c_k ~ 2 ** (gamma k)` is
    the paper's $\min(1, C 2^{-(1 + \gamma/2) k})$ (Jacot 2026): the optimum for independent coins where
    the error of level `k` falls as `c_k ** (-1/gamma)`.

    **Arguments:**

    - `costs`: cost of one evaluation of each level, in any unit, cheapest first.
    - `scale`: the one knob; the first level always fires from `scale=1` on. A scalar.
    - `gamma`: the exponent; the paper measured about 2.5 for UNets.

    Raises `ValueError` unless costs, scale and gamma are positive.
    """

    costs: Float[Array, " levels"]
    scale: Float[Array, ""]
    gamma: Float[Array, ""]

    def __init__(self, costs: Numbers, *, scale: Numbers = 1.0, gamma: Numbers = 2.5):
        check_values(costs, name="PowerLaw costs", limit=np.finfo(np.float64).max)
        check_values(scale, name="PowerLaw scale", limit=np.finfo(np.float64).max)
        check_values(gamma, name="PowerLaw gamma", limit=np.finfo(np.float64).max)
        self.costs = _default_float(costs)
        if self.costs.ndim != 1 or (_is_concrete(self.costs) and np.any(np.diff(self.costs) < 0)):
            raise ValueError(
                "PowerLaw needs one cost per level, an array of shape (K,), cheapest first, and was given "
                f"{costs}."
            )
        self.scale = _default_float(scale).astype(self.costs.dtype)
        self.gamma = _default_float(gamma).astype(self.costs.dtype)

    def __call__(self, t: RealScalarLike, h: RealScalarLike) -> Float[Array, " levels"]:
        del t, h
        relative = self.costs / self.costs[0]
        return jnp.minimum(1, self.scale * relative ** -(1 / self.gamma + 0.5))


class TabulatedProbabilities(AbstractProbabilities):
    """Probabilities given on a grid of times and interpolated linearly between them.

    Outside the grid the nearest end's values hold.

    **Arguments:**

    - `ts`: times `(N,)`, strictly increasing or strictly decreasing.
    - `values`: an array `(N, K)` with entries in `(0, 1]`, cheapest level first; inside
        [`mlem_jax.Rates`][] positive rates instead.

    Raises `ValueError` for other shapes, times or values.
    """

    ts: Float[Array, " times"]
    values: Float[Array, "times levels"]

    def __init__(self, ts: Numbers, values: Numbers):
        self.ts, self.values = _default_float(ts), _default_float(values)
        if self.ts.ndim != 1 or self.values.ndim != 2 or len(self.ts) != len(self.values):
            raise ValueError(
                "TabulatedProbabilities needs ts of shape (N,) and values of shape (N, K), and was "
                f"given {self.ts.shape} and {self.values.shape}."
            )
        check_values(values, name="TabulatedProbabilities values", limit=np.finfo(np.float64).max)
        if _is_concrete(self.ts):
            steps = np.diff(np.asarray(self.ts))
            if not (np.all(steps > 0) or np.all(steps < 0)):
                raise ValueError(
                    "TabulatedProbabilities needs strictly increasing or strictly decreasing ts and "
                    f"was given {self.ts}."
                )

    def __call__(self, t: RealScalarLike, h: RealScalarLike) -> Float[Array, " levels"]:
        del h
        increasing = self.ts[0] <= self.ts[-1]
        ts = jnp.where(increasing, self.ts, self.ts[::-1])
        values = jnp.where(increasing, self.values, self.values[::-1])
        t = jnp.asarray(t).astype(ts.dtype)
        return jax.vmap(lambda column: jnp.interp(t, ts, column), in_axes=1)(values)


class FunctionProbabilities(AbstractProbabilities):
    """Probabilities from a callable `t -> (K,)`; what MLEM makes of a plain function."""

    function: Callable[[RealScalarLike], Numbers]

    def __call__(self, t: RealScalarLike, h: RealScalarLike) -> Float[Array, " levels"]:
        del h
        return _default_float(self.function(t))


class Rates(AbstractProbabilities):
    """Expected evaluations per unit time instead of per step, so that the cost does not grow when the
    step shrinks: `p_k = min(1, rate_k(t) * h)`.

    **Arguments:** `rates`, one of: an array `(K,)` of positive rates; a callable `t -> (K,)`; a
    [`mlem_jax.TabulatedProbabilities`][] that holds rates. A large rate (`jnp.inf` too) makes a level
    fire in every step.

    Raises `ValueError` for rates that are not positive.
    """

    rates: AbstractProbabilities | Float[Array, " levels"]

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
            self.rates = _default_float(rates)

    def __call__(self, t: RealScalarLike, h: RealScalarLike) -> Float[Array, " levels"]:
        rates = self.rates(t, h) if isinstance(self.rates, AbstractProbabilities) else self.rates
        return jnp.minimum(1, rates * jnp.asarray(h).astype(rates.dtype))


def as_probabilities(
    probabilities: "Numbers | AbstractProbabilities | Callable[[RealScalarLike], Numbers]",
) -> AbstractProbabilities:
    """What [`mlem_jax.MLEM`][] accepts, as an object of this file."""
    if isinstance(probabilities, TabulatedProbabilities):
        check_values(probabilities.values, name="TabulatedProbabilities values", limit=1.0)
        return probabilities
    if isinstance(probabilities, AbstractProbabilities):
        return probabilities
    if callable(probabilities):
        return FunctionProbabilities(probabilities)
    constant = ConstantProbabilities(probabilities)
    if _is_concrete(constant.values) and np.all(np.asarray(constant.values) == 1):
        return EveryStep(constant.values.shape[0])
    return constant
