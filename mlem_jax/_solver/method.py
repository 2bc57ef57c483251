"""How steps are taken: the multilevel solver, its single-level counterpart, and what their evaluations cost.

A calibration, a plan and a count of expected evaluations all ask a method; nothing else knows which solvers there are.
"""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax.random as jr
from jaxtyping import PRNGKeyArray, PyTree

from .._coins import AbstractCoins
from .._custom_types import TimeVariable
from .._probabilities import AbstractProbabilities
from .mlab2 import check_time_variable, MLAB2
from .mlem import MLEM


class AbstractMethod(eqx.Module):
    """A kind of step, for several levels and for one alone.

    - `order`: the order of convergence in the length of the steps for ODEs.
    - `name`, `single_level_name`: what the multilevel solver and its single-level counterpart are called in reports.
    - `look_position`: where in a step increments are looked at and act, as a fraction of its length.
    - `whole_windows`: whether it pays that the windows of a deterministic pattern tile the whole solve.
    """

    order: eqx.AbstractClassVar[int]
    name: eqx.AbstractClassVar[str]
    single_level_name: eqx.AbstractClassVar[str]
    look_position: eqx.AbstractClassVar[float]
    whole_windows: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def multilevel_solver(
        self,
        probabilities: AbstractProbabilities,
        *,
        coins: AbstractCoins,
        key: PRNGKeyArray,
        **settings: Any,
    ) -> diffrax.AbstractSolver:
        """The multilevel solver. Raises `TypeError` for settings that it does not have."""

    @abc.abstractmethod
    def single_level_solver(self) -> diffrax.AbstractSolver:
        """The solver for terms with one level, or for the finest level of several."""

    @abc.abstractmethod
    def evaluations(self, active: Any, fired: Any) -> Any:
        """How often each level is evaluated, `(..., levels)`.

        **Arguments:** for each level, `(..., levels)`, in how many steps its weight differs from that of the next
        finer level (from 0 for the finest), and in how many it fires. The rule is linear: Booleans of one step give its
        evaluations, probabilities their expectation.
        """

    @abc.abstractmethod
    def resume(self, fresh: PyTree, last: PyTree) -> PyTree:
        """A solver state with the counters of `fresh`, as `solver.init` returns it, and with what the solver of the
        state `last` remembered of its steps. For a solve that goes on with other probabilities or coins."""

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The method as JSON can hold it; `method_from_dict` reads it."""


class EulerMaruyama(AbstractMethod):
    """Steps of first order: [`mlem_jax.MLEM`][], and [`diffrax.Euler`][] on one level."""

    order: ClassVar[int] = 1
    name: ClassVar[str] = "MLEM"
    single_level_name: ClassVar[str] = "Euler"
    look_position: ClassVar[float] = 0.0
    whole_windows: ClassVar[bool] = False

    def multilevel_solver(
        self,
        probabilities: AbstractProbabilities,
        *,
        coins: AbstractCoins,
        key: PRNGKeyArray,
        **settings: Any,
    ) -> MLEM:
        """[`mlem_jax.MLEM`][]."""
        return MLEM(probabilities, coins=coins, key=key, **settings)

    def single_level_solver(self) -> diffrax.Euler:
        """[`diffrax.Euler`][]."""
        return diffrax.Euler()

    def evaluations(self, active: Any, fired: Any) -> Any:
        """A level is evaluated where its coefficient is not zero."""
        del fired
        return active

    def resume(self, fresh: PyTree, last: PyTree) -> PyTree:
        """`fresh`: a one-step method remembers nothing."""
        del last
        return fresh

    def to_dict(self) -> dict[str, Any]:
        """See `AbstractMethod`."""
        return {"type": "EulerMaruyama"}


class AdamsBashforth(AbstractMethod):
    """Two-step Adams-Bashforth steps of second order: [`mlem_jax.MLAB2`][] on several levels and on one.

    **Arguments:** `time_variable`, `"time"` or `"log"`; see [`mlem_jax.MLAB2`][].

    Raises `ValueError` for another time variable.
    """

    time_variable: TimeVariable = eqx.field(static=True, default="time")

    order: ClassVar[int] = 2
    name: ClassVar[str] = "MLAB2"
    single_level_name: ClassVar[str] = "AB2"
    look_position: ClassVar[float] = 0.5
    whole_windows: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_time_variable("AdamsBashforth", self.time_variable)

    def multilevel_solver(
        self,
        probabilities: AbstractProbabilities,
        *,
        coins: AbstractCoins,
        key: PRNGKeyArray,
        **settings: Any,
    ) -> MLAB2:
        """[`mlem_jax.MLAB2`][]."""
        return MLAB2(probabilities, coins=coins, key=key, time_variable=self.time_variable, **settings)

    def single_level_solver(self) -> MLAB2:
        """`MLAB2([1.0])`: the Adams-Bashforth method."""
        return MLAB2([1.0], time_variable=self.time_variable, key=jr.key(0))

    def evaluations(self, active: Any, fired: Any) -> Any:
        """The cheapest level is evaluated at the start of every step, and again in its middle where the next level
        fires, whose increment is a difference to it. The others are evaluated as in `EulerMaruyama`."""
        xp = active.__array_namespace__()
        active, fired = (x.astype(xp.int32) if x.dtype == bool else x for x in (active, fired))
        base = xp.ones_like(fired[..., :1])
        if fired.shape[-1] > 1:
            base = base + fired[..., 1:2]
        return xp.concat([base, active[..., 1:]], axis=-1)

    def resume(self, fresh: PyTree, last: PyTree) -> PyTree:
        """With the drift and the increments of the last step."""
        return eqx.tree_at(lambda state: state.last, fresh, last.last)

    def to_dict(self) -> dict[str, Any]:
        """See `AbstractMethod`."""
        return {"type": "AdamsBashforth", "time_variable": self.time_variable}


_TYPES: dict[str, type[AbstractMethod]] = {"EulerMaruyama": EulerMaruyama, "AdamsBashforth": AdamsBashforth}


def method_from_dict(values: Mapping[str, Any]) -> AbstractMethod:
    """The method that `AbstractMethod.to_dict` described. Raises `ValueError` for an unknown type."""
    settings = dict(values)
    kind = settings.pop("type", None)
    if kind not in _TYPES:
        raise ValueError(f"type={kind!r} is not a method of mlem_jax; these are {', '.join(_TYPES)}.")
    return _TYPES[kind](**settings)
