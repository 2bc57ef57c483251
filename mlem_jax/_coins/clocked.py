r"""Coins that are coupled over time: one firing in each unit of a level's clock.

A level's clock $\Lambda_k(t) = \sum p_k$ is the expected number of firings so far, and a unit of it is called a window.
Only the fractional part of the clock matters for what comes next; it is kept apart from the whole part, so that long
solves stay exact.
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
    """Whole and fractional part of each level's clock."""

    window: Int[Array, " levels"]
    phase: Float[Array, " levels"]


class _AbstractClockedCoins(AbstractCoins):
    """One firing in each window, at a position that a subclass decides. Steps with `p = 1` fire once and leave the
    clock as it is."""

    def init(self, num_levels: int) -> PyTree[Array]:
        """All clocks at zero."""
        self._check(num_levels)
        return _Clock(jnp.zeros(num_levels, jnp.int32), jnp.zeros(num_levels))

    @abc.abstractmethod
    def _check(self, num_levels: int) -> None:
        """Raises `ValueError` where the policy does not fit so many levels."""

    @abc.abstractmethod
    def _position(
        self, window: Int[Array, " levels"], key: PRNGKeyArray, dtype: Any
    ) -> Float[Array, " levels"]:
        """Where in `[0, 1)` of its window each level fires."""

    def toss(
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
    r"""One firing at a uniformly random place in every unit of a level's clock.

    In the field's terms, stratified sampling of time. A level fires once in every `1 / p_k` steps; what is left of the
    error is the variation of its increment inside such a window. Unbiased over the coins as a whole where the drift
    does not depend on the state; elsewhere not, since the state depends on the coins of earlier steps. To first order
    in the window's length $H$ the bias is that of correcting in Euler steps of that length,
    $-\tfrac{H}{2} D_k' D_k$ in the drift.
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
    r"""Evenly spaced firings: one at the same place in every unit of a level's clock.

    **Arguments:**

    - `offset`: the place, in `[0, 1)`, a number or one per level `(K,)`. A Python number is fixed at
        compilation, as everywhere in Equinox; an array is data and may be traced. `None` draws it once per level
        (systematic sampling): the result is unbiased over the coins as a whole, not given the past.
        `0.5` is the deterministic midpoint pattern: no randomness at all, hence nothing that is
        unbiased. It is Strang splitting of the cheap flow and the corrections, with each correction one
        Euler step of the window's length $H$: of second order in $H$ where a correction does not act on
        itself ($D_k' D_k = 0$, a force on velocities); elsewhere an error $-\tfrac{H}{2} D_k' D_k$ in the
        drift is left, of first order in $H$ but quadratic in the increment. Like the impulse method of
        molecular dynamics it may resonate with oscillations whose period is close to a window.

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
        # A plain number stays one. The default coins are made when the package is imported, and an array would
        # start JAX's backends then, too early for jax.distributed.initialize().
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
        """With the offset, if it is given."""
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
