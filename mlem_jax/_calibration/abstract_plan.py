"""The abstract base of plans: the terms, grid and solver of a solve, with its predicted cost and error."""

import abc
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import diffrax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._custom_types import Y
from .._term import with_levels
from .files import read_record, write_record
from .fingerprints import mismatch

_Plan = TypeVar("_Plan", bound="AbstractPlan")
_REMEDY = "Make it again: calibration.plan(...).save(FILE)."


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class AbstractPlan(abc.ABC):
    """A way to solve within a budget or to an error, with its predicted cost and error. `Calibration.plan` and
    `FittedSteps.plan` return plans; `print` shows them.

    !!! example

        ```python
        plan = calibration.plan(budget=12)
        diffrax.diffeqsolve(
            plan.terms(terms), plan.solver(key=key), plan.ts[0], plan.ts[-1], None, y0,
            stepsize_controller=diffrax.StepTo(plan.grid),
        )
        ```

    Errors are root mean squares over trajectories and components of the state.

    - `ts`: times of the steps, `(N + 1,)`; `grid` has the same times as a JAX array.
    - `levels`: indices of the kept levels among the calibrated ones, cheapest first.
    - `costs`: cost of one evaluation of each kept level, in evaluations of the finest calibrated level, `(K,)`.
    - `cost`: expected cost of the solve, in evaluations of the finest level.
    - `error`: predicted distance to the exact solution of the finest level.
    - `relative_error_of_prediction`: relative standard error of `error`, from the differences between pilot
        trajectories.
    - `finest_error`: the error of the finest level itself, if known; not included in `error`.
    - `advice`: remarks, one sentence or two each.
    - `levels_id`, `state_id`: identify the levels and the shapes of the state that the plan was made for; both are
        empty in a plan without a calibration.

    Subclasses are final dataclasses. Each has a `kind`, the name of its file format, and the `version` of the format.
    """

    kind: ClassVar[str]
    version: ClassVar[int]

    ts: Float[np.ndarray, " times"]
    levels: tuple[int, ...]
    costs: Float[np.ndarray, " levels"]
    cost: float
    error: float
    relative_error_of_prediction: float
    finest_error: float | None
    advice: tuple[str, ...]
    levels_id: tuple[str, ...] = ()
    state_id: str = ""

    @property
    @abc.abstractmethod
    def deterministic(self) -> bool:
        """Whether solves with different keys for `solver` are the same."""

    @property
    @abc.abstractmethod
    def expected_firings(self) -> Float[np.ndarray, " levels"]:
        """The expected number of steps of a solve in which each kept level fires, `(K,)`."""

    @abc.abstractmethod
    def solver(self, *, key: PRNGKeyArray, **settings: Any) -> diffrax.AbstractSolver:
        """The solver for `plan.terms(terms)`; `settings` are those of its class."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """The plan as a table."""

    @classmethod
    @abc.abstractmethod
    def _from_file(cls: type[_Plan], values: dict[str, Any], path: str | Path) -> _Plan:
        """The plan from the fields in a file."""

    def __repr__(self) -> str:
        levels = ", ".join(str(level + 1) for level in self.levels)
        return (
            f"<{type(self).__name__}: levels {levels}, {len(self.ts) - 1} steps, cost {self.cost:.3g}, predicted error "
            f"{self.error:.3g}>"
        )

    @property
    def grid(self) -> Float[Array, " times"]:
        """`ts` as a JAX array, for `diffrax.StepTo`."""
        return jnp.asarray(self.ts, jnp.result_type(float))

    def terms(self, terms: PyTree) -> PyTree:
        """The same terms with the kept levels only. Raises `ValueError` if the terms have fewer levels than were
        calibrated."""
        return with_levels(terms, self.levels, costs=self.costs)

    def cut(self: _Plan, start: float) -> _Plan:
        """The remaining steps of the plan, from the first of its times at or after `start`, with the same firings. Its
        error is unknown. Raises `ValueError` for a start after the beginning of the last step, and for plans whose
        steps need the results of earlier steps."""
        raise ValueError(
            f"A {self.kind} cannot start at {start:g}: its steps need the results of earlier steps. Use a plan with "
            "coins, calibration.plan(coins=...), or mlem_jax.steps_plan."
        )

    def _first_step(self, start: float) -> int:
        """Index of the first time at or after `start`. Raises `ValueError` if no step starts there or later."""
        past = (self.ts <= start) if self.ts[-1] < self.ts[0] else (self.ts >= start)
        first = int(np.argmax(past)) if np.any(past) else len(self.ts)
        if first >= len(self.ts) - 1:
            raise ValueError(
                f"This plan has no step that starts at or after {start:g}; its last step starts at {self.ts[-2]:g}."
            )
        return first

    def require(self, levels: Sequence[Any], y0: Y) -> None:
        """Raises `ValueError` unless the plan was made for these levels and a state of these shapes. `levels` are all
        calibrated levels; their types, settings and numbers are compared. A plan without a calibration fits any levels.
        """
        if not self.levels_id:
            return
        found = mismatch("This plan was made for", self.levels_id, self.state_id, levels, y0)
        if found is not None:
            raise ValueError(f"{found} Make a plan from a calibration of these levels.")

    def save(self, path: str | Path) -> None:
        """Writes one `.npz` file atomically. Raises `OSError` if the disk is full."""
        write_record(path, self.kind, self.version, self)

    @classmethod
    def load(cls: type[_Plan], path: str | Path) -> _Plan:
        """Reads a file that `save` wrote; `AbstractPlan.load` reads plans of any kind. Raises `ValueError` for a
        damaged file or one of another kind."""
        classes = {kind.kind: kind for kind in (cls, *cls.__subclasses__()) if hasattr(kind, "kind")}
        versions = {name: kind.version for name, kind in classes.items()}
        kind, values = read_record(path, versions, "a plan", _REMEDY)
        return classes[kind]._from_file(values, path)
