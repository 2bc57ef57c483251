"""What every kind of plan offers: the terms, grid and solver of a solve, and what it promises."""

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
    """How to solve within a budget, and what will come of it. From `Calibration.plan`; `print` it.

    !!! example

        ```python
        plan = calibration.plan(budget=12)
        diffrax.diffeqsolve(
            plan.terms(terms), plan.solver(key=key), plan.ts[0], plan.ts[-1], None, y0,
            stepsize_controller=diffrax.StepTo(plan.grid),
        )
        ```

    Errors are root mean squares over trajectories and components of the state.

    - `ts`: times of the steps, `(N + 1,)`; `grid` is the same as a JAX array.
    - `levels`: which of the calibrated levels are kept, as indices, cheapest first.
    - `costs`: of one evaluation of each kept level, in evaluations of the finest calibrated level, `(K,)`.
    - `cost`: expected cost of the solve, in evaluations of the finest level.
    - `error`: predicted distance to the exact solution of the finest level.
    - `relative_error_of_prediction`: its relative standard error, from the differences between pilot trajectories.
    - `finest_error`: the finest level's own error, if known; not contained in `error`.
    - `advice`: remarks in words, one each.
    - `levels_id`, `state_id`: for which levels and which shape of state the plan was made; empty in one made by hand.

    Subclasses are final dataclasses. Each has a `kind`, the name of its files' format, and that format's `version`.
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
        """In how many steps of a solve each kept level fires, on average, `(K,)`."""

    @abc.abstractmethod
    def solver(self, *, key: PRNGKeyArray, **settings: Any) -> diffrax.AbstractSolver:
        """The solver for `plan.terms(terms)`; `settings` are passed to it."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """The plan as a table for people."""

    @classmethod
    @abc.abstractmethod
    def _from_file(cls: type[_Plan], values: dict[str, Any], path: str | Path) -> _Plan:
        """The plan whose fields were written to a file."""

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
        """The same terms with the kept levels only. Raises `ValueError` for fewer levels than were
        calibrated."""
        return with_levels(terms, self.levels, costs=self.costs)

    def cut(self: _Plan, start: float) -> _Plan:
        """The rest of the plan from the first of its times at or past `start`, with the same firings there. Its error
        is not known. Raises `ValueError` for a start past the last step, and for kinds of plans whose steps need those
        before."""
        raise ValueError(
            f"A {self.kind} cannot start at {start:g}: its steps need those before. Use a plan from Calibration.plan, "
            "or mlem_jax.steps_plan."
        )

    def _first_step(self, start: float) -> int:
        """Index of the first time at or past `start`."""
        past = (self.ts <= start) if self.ts[-1] < self.ts[0] else (self.ts >= start)
        first = int(np.argmax(past)) if np.any(past) else len(self.ts)
        if first >= len(self.ts) - 1:
            raise ValueError(
                f"This plan has no step that starts at or past {start:g}; its last one starts at {self.ts[-2]:g}."
            )
        return first

    def require(self, levels: Sequence[Any], y0: Y) -> None:
        """Raises `ValueError` unless the plan was made for these levels (all that were calibrated: their types,
        settings and all numbers inside them) and a state of these shapes. A plan made by hand is for any."""
        if not self.levels_id:
            return
        found = mismatch("This plan was made for", self.levels_id, self.state_id, levels, y0)
        if found is not None:
            raise ValueError(f"{found} Make a plan from a calibration of these levels.")

    def save(self, path: str | Path) -> None:
        """Writes one `.npz` file, atomically. Raises `OSError` that says so where the disk is full."""
        write_record(path, self.kind, self.version, self)

    @classmethod
    def load(cls: type[_Plan], path: str | Path) -> _Plan:
        """Reads what `save` wrote: `AbstractPlan.load` a plan of any kind. Raises `ValueError` for another or a damaged
        file."""
        classes = {kind.kind: kind for kind in (cls, *cls.__subclasses__()) if hasattr(kind, "kind")}
        versions = {name: kind.version for name, kind in classes.items()}
        kind, values = read_record(path, versions, "a plan", _REMEDY)
        return classes[kind]._from_file(values, path)
