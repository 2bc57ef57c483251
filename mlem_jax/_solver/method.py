"""Methods: a multilevel solver, its counterpart for a single level, and the number of evaluations in their steps.

Calibrations, plans and expected evaluations use a method; no other code depends on the kind of solver.
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
    """A time-stepping method, for several levels and for a single one.

    - `order`: the order of convergence in the step size for ODEs.
    - `name`, `single_level_name`: names of the multilevel solver and of its single-level counterpart in reports.
    - `correction_position`: the position in a step at which corrections are evaluated and applied, as a fraction of the
        step's length.
    - `whole_windows`: whether plans adjust the probabilities of a deterministic pattern such that the solve ends at the
        end of a window. A fraction of a window at the end leaves an error of first order in the window.
    - `time_variable`: in which drifts are extrapolated, `"time"` or `"log"`; a class variable or a field.
    """

    time_variable: eqx.AbstractVar[TimeVariable]
    order: eqx.AbstractClassVar[int]
    name: eqx.AbstractClassVar[str]
    single_level_name: eqx.AbstractClassVar[str]
    correction_position: eqx.AbstractClassVar[float]
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
        """The number of evaluations of each level, `(..., levels)`.

        **Arguments:** `active`, in how many steps the weight of each level differs from that of the next finer level
        (from 0 for the finest), `(..., levels)`; `fired`, in how many steps each level fires, `(..., levels)`. The
        result is linear in both: Booleans of one step give its evaluations, probabilities give their expectation.
        """

    @abc.abstractmethod
    def resume(self, fresh: PyTree, last: PyTree) -> PyTree:
        """The initial state of a solve that continues another one with different probabilities or coins: the counters
        of `fresh`, which `solver.init` returns, and the values of earlier steps from `last`, the other solve's
        state."""

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The method as a dictionary of JSON values, for [`mlem_jax.method_from_dict`][]."""


class EulerMaruyama(AbstractMethod):
    """The Euler-Maruyama method, of first order: [`mlem_jax.MLEM`][], and [`diffrax.Euler`][] on a single level."""

    time_variable: ClassVar[TimeVariable] = "time"
    order: ClassVar[int] = 1
    name: ClassVar[str] = "MLEM"
    single_level_name: ClassVar[str] = "Euler"
    correction_position: ClassVar[float] = 0.0
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
        """A level is evaluated in the steps in which its coefficient is not zero."""
        del fired
        return active

    def resume(self, fresh: PyTree, last: PyTree) -> PyTree:
        """`fresh`: a one-step method uses no values of earlier steps."""
        del last
        return fresh

    def to_dict(self) -> dict[str, Any]:
        """See `AbstractMethod`."""
        return {"type": "EulerMaruyama"}


class AdamsBashforth(AbstractMethod):
    """The two-step Adams-Bashforth method, of second order: [`mlem_jax.MLAB2`][] on several levels and on a single one.

    **Arguments:** `time_variable`, `"time"` or `"log"`; see [`mlem_jax.MLAB2`][].

    Raises `ValueError` for another time variable.
    """

    time_variable: TimeVariable = eqx.field(static=True, default="time")

    order: ClassVar[int] = 2
    name: ClassVar[str] = "MLAB2"
    single_level_name: ClassVar[str] = "AB2"
    correction_position: ClassVar[float] = 0.5
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
        """The cheapest level is evaluated at the start of every step, and again in its middle if level 2 fires, whose
        increment is the difference to it. The other levels are evaluated as in `EulerMaruyama`."""
        xp = active.__array_namespace__()
        active, fired = (x.astype(xp.int32) if x.dtype == bool else x for x in (active, fired))
        base = xp.ones_like(fired[..., :1])
        if fired.shape[-1] > 1:
            base = base + fired[..., 1:2]
        return xp.concat([base, active[..., 1:]], axis=-1)

    def resume(self, fresh: PyTree, last: PyTree) -> PyTree:
        """`fresh` with the drift and the increments of the last step."""
        return eqx.tree_at(lambda state: state.last, fresh, last.last)

    def to_dict(self) -> dict[str, Any]:
        """See `AbstractMethod`."""
        return {"type": "AdamsBashforth", "time_variable": self.time_variable}


_TYPES: dict[str, type[AbstractMethod]] = {"EulerMaruyama": EulerMaruyama, "AdamsBashforth": AdamsBashforth}


def method_from_dict(values: Mapping[str, Any]) -> AbstractMethod:
    """The method that `AbstractMethod.to_dict` describes. Raises `ValueError` for an unknown type."""
    settings = dict(values)
    kind = settings.pop("type", None)
    if kind not in _TYPES:
        raise ValueError(f"type={kind!r} is not a method of mlem_jax; these are {', '.join(_TYPES)}.")
    return _TYPES[kind](**settings)
