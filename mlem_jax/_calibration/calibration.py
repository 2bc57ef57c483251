"""A calibration: what was measured, what was tried, and the plans that follow from it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Float

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
    """What [`mlem_jax.calibrate`][] found out about the levels of one problem. `print` it for a report.

    - `measurements`: sizes and effects of the increments, costs, and errors of each level alone along pilot
        trajectories, a [`mlem_jax.Measurements`][].
    - `trials`: runs of the multilevel method on the same pilots, a [`mlem_jax.Trials`][].
    - `remarks`: what else the caller of `calibrate` noticed, in words; printed, and part of the advice of each plan.
    - `fitted`: steps of all costs whose coefficients were fitted on pilots, a [`mlem_jax.FittedSteps`][], or `None`.
    """

    measurements: Measurements
    trials: Trials
    remarks: tuple[str, ...] = ()
    fitted: FittedSteps | None = None

    @property
    def num_levels(self) -> int:
        """How many levels were measured."""
        return self.measurements.num_levels

    @property
    def ts(self) -> Float[np.ndarray, " times"]:
        """The times, `(N + 1,)`, in the order of the solve."""
        return self.measurements.ts

    @property
    def costs(self) -> Float[np.ndarray, " levels"]:
        """Cost of one evaluation of each level, in evaluations of the finest one, `(K,)`."""
        return self.measurements.costs

    @property
    def method(self) -> AbstractMethod:
        """Of the steps that plans take."""
        return self.measurements.method

    def with_fitted(self, fitted: FittedSteps) -> "Calibration":
        """The same with a catalogue of fitted steps, of which `plan` then makes use too.

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
        """Decides how to solve within a budget, or for a target error.

        Fitted steps, where the calibration has them, compete with plans with coins, unless `coins`, `steps` or `levels`
        are given: for a budget the more accurate ones win, for a target error the cheaper ones. The error of fitted
        steps is that of held-out pilots, and for a budget their geometric mean counts; that of a plan with coins is a
        predicted RMS.

        For a plan with coins, all sets of levels that keep the finest one and all step counts that the calibration has
        tried are compared. For coins that are independent over steps, probabilities are the optimum
        `min(1, L h sqrt(V / C))` (Jacot 2026). For coupled coins a window's error is the variation of the effect inside
        it, which that profile over time keeps small too, but how much each level should get differs: its share is found
        by simulating the coins on the pilot trajectories.

        **Arguments:**

        - `budget`: expected cost in finest-level evaluations; or `error`: the wanted RMS distance to the exact solution
            of the finest level. Exactly one of them.
        - `coins`: the policy of a plan with coins; by default the midpoint pattern, or fitted steps.
        - `steps`, `levels`: fix the number of steps (a divisor of the calibration's) or the kept levels
            (indices, the finest last) instead of searching.
        - `in_seconds`: take as the levels' costs their wall-clock seconds, for batches of the size and on the device
            that they were calibrated with, instead of `costs` (FLOPs unless others were given). Small networks take
            longer than their FLOPs say. The budget is then in times of one finest evaluation.

        Raises `ValueError` if both or neither of budget and error are given, if they are not positive, or if they
        cannot be met.
        """
        found = best_plan(
            self.measurements,
            self.trials,
            self.fitted,
            PlanRequest(budget, error, coins, steps, levels, in_seconds),
        )
        return dataclasses.replace(found, advice=(*found.advice, *self.remarks))

    def mismatch(self, levels: Sequence[Any], y0: Y) -> str | None:
        """A sentence that says how these levels or this state differ from those that were measured, or `None`."""
        measured = self.measurements
        return mismatch(
            "This calibration was measured with", measured.levels_id, measured.state_id, levels, y0
        )

    def require(self, levels: Sequence[Any], y0: Y) -> None:
        """Raises `ValueError` unless the calibration was measured with these levels (their types, settings and all
        numbers inside them) and a state of these shapes."""
        found = self.mismatch(levels, y0)
        if found is not None:
            raise ValueError(f"{found} Calibrate again: mlem_jax.calibrate(terms, ts, y0s, key=key).")

    def save(self, path: str | Path) -> None:
        """Writes one `.npz` file, atomically. Raises `OSError` that says so where the disk is full."""
        write_record(path, _KIND, _VERSION, self)

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Reads what `save` wrote. Raises `ValueError` for another or a damaged file; whether it belongs to certain
        levels is checked by `require`."""
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
            f"<Calibration for {self.method.name}: {measured.num_levels} levels, {measured.num_steps} steps, "
            f"{measured.num_pilots} pilots>"
        )

    def __str__(self) -> str:
        fitted = () if self.fitted is None else (str(self.fitted),)
        return "\n".join([calibration_report(self.measurements, self.trials), *fitted, *self.remarks])


def make_plan(calibration: Calibration, **settings: Any) -> Plan | FittedPlan:
    """`calibration.plan(...)` as a function: see [`mlem_jax.Calibration.plan`][]."""
    return calibration.plan(**settings)
