"""A calibration: measurements, trial runs and fitted steps, and the plans that follow from them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Float

from .._checks import counted
from .._coins import AbstractCoins
from .._custom_types import Y
from .._solver import AbstractMethod
from .files import decode_record, read_record, write_record
from .fingerprints import mismatch
from .fit_catalogue import FittedSteps
from .fit_plan import FittedPlan
from .measurements import Measurements
from .plan import Plan
from .plan_choice import best_plan, PlanRequest
from .report import calibration_report
from .trials import Trials

_KIND, _VERSION = "calibration", 2


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """The result of [`mlem_jax.calibrate`][]. `print` it for a report.

    - `measurements`: sizes and effects of the increments along pilot trajectories, costs, and errors of each level
        alone, a [`mlem_jax.Measurements`][].
    - `trials`: trial runs of the multilevel method on the same pilots, a [`mlem_jax.Trials`][].
    - `remarks`: sentences that are printed with the report and added to the advice of each plan.
    - `fitted`: fitted steps of different costs, a [`mlem_jax.FittedSteps`][], or `None`.
    """

    measurements: Measurements
    trials: Trials
    remarks: tuple[str, ...] = ()
    fitted: FittedSteps | None = None

    @property
    def num_levels(self) -> int:
        """Number of measured levels."""
        return self.measurements.num_levels

    @property
    def ts(self) -> Float[np.ndarray, " times"]:
        """The times of the finest grid, `(N + 1,)`, in the order of the solve."""
        return self.measurements.ts

    @property
    def costs(self) -> Float[np.ndarray, " levels"]:
        """Cost of one evaluation of each level, in evaluations of the finest one, `(K,)`."""
        return self.measurements.costs

    @property
    def method(self) -> AbstractMethod:
        """The method with which plans take steps."""
        return self.measurements.method

    def with_fitted(self, fitted: FittedSteps) -> "Calibration":
        """The same calibration with a catalogue of fitted steps, among which `plan` then also chooses.

        !!! example

            ```python
            steps = ml.fit_steps(terms, ts, y0s, key=key)
            calibration = calibration.with_fitted(steps)
            ```

        Raises `ValueError` for steps that were fitted with other levels or another state."""
        measured = self.measurements
        if (fitted.levels_id, fitted.state_id) != (measured.levels_id, measured.state_id):
            raise ValueError(
                "These steps were fitted with other levels or another state than were calibrated. Fit steps with the "
                "same terms: mlem_jax.fit_steps(terms, ts, y0s, key=key)."
            )
        return dataclasses.replace(self, fitted=fitted)

    @overload
    def plan(
        self,
        *,
        budget: float | int | None = None,
        error: float | int | None = None,
        coins: AbstractCoins,
        steps: int | None = None,
        levels: tuple[int, ...] | None = None,
        in_seconds: bool = False,
    ) -> Plan: ...
    @overload
    def plan(
        self,
        *,
        budget: float | int | None = None,
        error: float | int | None = None,
        coins: None = None,
        steps: int | None = None,
        levels: tuple[int, ...] | None = None,
        in_seconds: bool = False,
    ) -> Plan | FittedPlan: ...
    def plan(
        self,
        *,
        budget: float | int | None = None,
        error: float | int | None = None,
        coins: AbstractCoins | None = None,
        steps: int | None = None,
        levels: tuple[int, ...] | None = None,
        in_seconds: bool = False,
    ) -> Plan | FittedPlan:
        """The best way to solve within a budget, or to a target error.

        Plans with coins are compared with fitted steps, if the calibration has them and none of `coins`, `steps` and
        `levels` is given. For a budget the more accurate plan is returned, for a target error the cheaper one. The
        error of fitted steps is measured on held-out pilots, and for a budget it is their geometric mean; the error of
        a plan with coins is a predicted RMS error. Fitted steps for a budget are those of
        [`mlem_jax.FittedSteps.plan`][], which also goes by the distribution if they were fitted for it.

        The search for a plan with coins compares all subsets of levels with the finest one and all numbers of steps
        that the calibration has measured. The probabilities over time are `min(1, L h sqrt(V / C))`, the optimum for
        coins that are independent over steps (Jacot 2026). The error of coupled coins is the variation of the effect
        within a window, for which the same profile over time is suitable; the levels' shares of the cost are then
        optimised by simulating the coins on the pilot trajectories. Firings are whole numbers, and a larger budget may
        move the few firings of a level to worse times: the plan is compared with those for 0.84 and 0.71 of the budget.

        **Arguments:**

        - `budget`: expected cost in finest-level evaluations; or `error`: RMS distance to the exact solution of the
            finest level. Exactly one of them is required.
        - `coins`: the policy of a plan with coins; by default the midpoint pattern, unless fitted steps are better.
        - `steps`, `levels`: the number of steps (a divisor of the calibration's) or the kept levels (indices, the
            finest last), which are otherwise searched.
        - `in_seconds`: whether the levels' costs are wall-clock seconds, for the batch size and device of the
            calibration, instead of `costs` (FLOPs unless others were given). Small networks take longer than their
            FLOPs suggest. The unit of the budget is then the seconds of one finest-level evaluation.

        Raises `ValueError` if both or neither of budget and error are given, if they are not positive, or if they
        cannot be reached.
        """
        found = best_plan(
            self.measurements,
            self.trials,
            self.fitted,
            PlanRequest(budget, error, coins, steps, levels, in_seconds),
        )
        return dataclasses.replace(found, advice=(*found.advice, *self.remarks))

    def mismatch(self, levels: Sequence[Any], y0: Y) -> str | None:
        """A sentence about how these levels or this state differ from the measured ones; `None` if they do not
        differ."""
        measured = self.measurements
        return mismatch(
            "This calibration was measured with", measured.levels_id, measured.state_id, levels, y0
        )

    def require(self, levels: Sequence[Any], y0: Y) -> None:
        """Raises `ValueError` unless the calibration was measured with these levels and a state of these shapes. Types,
        settings and numbers of the levels are compared."""
        found = self.mismatch(levels, y0)
        if found is not None:
            raise ValueError(f"{found} Calibrate again: mlem_jax.calibrate(terms, ts, y0s, key=key).")

    def save(self, path: str | Path) -> None:
        """Writes one `.npz` file atomically. Raises `OSError` if the disk is full."""
        write_record(path, _KIND, _VERSION, self)

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Reads a file that `save` wrote. Raises `ValueError` for a damaged file or one of another kind. `require`
        checks whether the calibration belongs to given levels."""
        remedy = "Measure it again: mlem_jax.calibrate(...).save(FILE)."
        _, values = read_record(path, {_KIND: _VERSION}, "a calibration", remedy)
        for name, record in (("measurements", Measurements), ("trials", Trials)):
            values[name] = decode_record(record, values.get(name, {}), path)
        if values.get("fitted") is not None:
            values["fitted"] = FittedSteps.from_values(values["fitted"], path)
        return decode_record(cls, values, path)

    def __repr__(self) -> str:
        measured = self.measurements
        return (
            f"<Calibration for {self.method.name}: {counted(measured.num_levels, 'level')}, "
            f"{measured.num_steps} steps, {measured.num_pilots} pilots>"
        )

    def __str__(self) -> str:
        fitted = () if self.fitted is None else (str(self.fitted),)
        return "\n".join([calibration_report(self.measurements, self.trials), *fitted, *self.remarks])


def make_plan(calibration: Calibration, **settings: Any) -> Plan | FittedPlan:
    """[`mlem_jax.Calibration.plan`][] as a function."""
    return calibration.plan(**settings)
