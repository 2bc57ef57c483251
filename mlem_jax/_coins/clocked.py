r"""Coins that are coupled over time: one firing in each unit of a level's clock.

A level's clock $\Lambda_k(t) = \sum p_k$ is the expected number of its firings so far. A unit of the clock is called a
window. The state holds the integer and the fractional part of the clock separately, because a single floating-point
number would lose precision in long solves.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._custom_types import Numbers
from .base import AbstractCoins


class _Clock(eqx.Module):
    """Integer and fractional part of each level's clock."""

    window: Int[Array, " levels"]
    phase: Float[Array, " levels"]


class _AbstractClockedCoins(AbstractCoins):
    """One firing in each window, at a position that a subclass decides. In a step with `p = 1` the level fires once and
    its clock does not advance."""

    def init(self, num_levels: int) -> PyTree[Array]:
        """All clocks at zero."""
        self._check(num_levels)
        return _Clock(jnp.zeros(num_levels, jnp.int32), jnp.zeros(num_levels))

    @abc.abstractmethod
    def _check(self, num_levels: int) -> None:
        """Raises `ValueError` if the policy does not fit this number of levels."""

    @abc.abstractmethod
    def _position(
        self, window: Int[Array, " levels"], key: PRNGKeyArray, dtype: Any
    ) -> Float[Array, " levels"]:
        """The position in `[0, 1)` at which each level fires in its window."""

    def draw(
        self, p: Float[Array, " levels"], state: _Clock, step: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[Int[Array, " levels"], _Clock]:
        """See [`mlem_jax.AbstractCoins`][]."""
        del step
        always = p >= 1
        phase = state.phase.astype(p.dtype)
        end = phase + jnp.where(always, 0, p)
        position = self._position(state.window, key, p.dtype)
        # The step covers [phase, end): a part of this window, and where end > 1 a part of the next.
        count = ((phase <= position) & (position < end)).astype(jnp.int32)
        over = (end >= 1).astype(jnp.int32)
        rest = end - over.astype(p.dtype)
        following = self._position(state.window + 1, key, p.dtype)
        count = count + jnp.where((over == 1) & (following < rest), 1, 0)
        clock = _Clock(state.window + over, rest.astype(state.phase.dtype))
        return jnp.where(always, 1, count), clock


class StratifiedCoins(_AbstractClockedCoins):
    r"""One firing at a uniformly random position in every unit of a level's clock: stratified sampling of time.

    A level fires once in every `1 / p_k` steps, so the only remaining error is the variation of its increment within
    such a window. The mean over the coins is unbiased if the drift does not depend on the state. Otherwise it is
    biased, because the state depends on the coins of earlier steps: to first order in the window's length $H$ the bias
    is that of corrections in Euler steps of length $H$, $-\tfrac{H}{2} D_k' D_k$ in the drift.
    """

    def _check(self, num_levels: int) -> None:
        del num_levels

    def _position(
        self, window: Int[Array, " levels"], key: PRNGKeyArray, dtype: Any
    ) -> Float[Array, " levels"]:
        levels = jnp.arange(window.shape[0])

        def draw(level: Array, index: Array) -> Array:
            return jr.uniform(jr.fold_in(jr.fold_in(key, level), index), (), dtype)

        return jax.vmap(draw)(levels, window)

    def to_dict(self) -> dict[str, Any]:
        """See [`mlem_jax.AbstractCoins`][]."""
        return {"type": "StratifiedCoins"}


class SystematicCoins(_AbstractClockedCoins):
    r"""Evenly spaced firings: one at the same position in every unit of a level's clock.

    **Arguments:**

    - `offset`: the position, in `[0, 1)`: a number, or one per level `(K,)`. A Python number is fixed at
        compilation, as everywhere in Equinox; an array is data and may be traced. With `None` the position is drawn
        once per level (systematic sampling): the weights are unbiased over all coins, but not given the past.
        `0.5` is the deterministic midpoint pattern, which has no randomness and hence a bias. It is Strang splitting
        of the cheap flow and the corrections, where each correction is one Euler step of the window's length $H$.
        It is of second order in $H$ if a correction does not act on itself ($D_k' D_k = 0$, as for a force on
        velocities). Otherwise an error $-\tfrac{H}{2} D_k' D_k$ in the drift remains, which is of first order in $H$
        but quadratic in the increment. Like the impulse method of molecular dynamics, the pattern may resonate with
        oscillations whose period is close to a window.

    Raises `ValueError` for an offset outside `[0, 1)`.
    """

    offset: Float[Array, "..."] | float | None

    def __init__(self, offset: Numbers | None = None):
        if offset is None:
            self.offset = None
            return
        if not isinstance(offset, Tracer):
            array = np.asarray(offset)
            if array.ndim > 1 or not np.all((array >= 0) & (array < 1)):
                raise ValueError(
                    "SystematicCoins needs an offset in [0, 1), a number or one per level, and was given "
                    f"{offset}. Write 0.5 for the midpoint pattern or None for random offsets."
                )
        # A Python number is not converted to an array: the default coins are built when the package is imported, and an
        # array would initialise JAX's backends then, which is too early for jax.distributed.initialize().
        plain = isinstance(offset, float | int)
        self.offset = float(offset) if plain else jnp.asarray(offset, jnp.result_type(float))

    def _check(self, num_levels: int) -> None:
        if self.offset is not None and jnp.shape(self.offset) not in ((), (num_levels,)):
            raise ValueError(
                f"SystematicCoins has offsets of shape {jnp.shape(self.offset)} for {num_levels} levels. Give a "
                "number, or one per level."
            )

    def _position(
        self, window: Int[Array, " levels"], key: PRNGKeyArray, dtype: Any
    ) -> Float[Array, " levels"]:
        if self.offset is None:
            return jr.uniform(key, window.shape, dtype)
        return jnp.broadcast_to(jnp.asarray(self.offset, dtype), window.shape)

    @property
    def name(self) -> str:
        """The class and, if given, the offset."""
        if self.offset is None:
            return "SystematicCoins"
        return f"SystematicCoins({np.asarray(self.offset).tolist()})"

    @property
    def deterministic(self) -> bool:
        """True with an offset."""
        return self.offset is not None

    def randomised(self) -> AbstractCoins:
        """The same spacing with random offsets."""
        return SystematicCoins()

    def to_dict(self) -> dict[str, Any]:
        """See [`mlem_jax.AbstractCoins`][]."""
        offset = None if self.offset is None else np.asarray(self.offset).tolist()
        return {"type": "SystematicCoins", "offset": offset}
