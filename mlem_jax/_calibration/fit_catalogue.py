"""The catalogue of fitted steps of different costs, and the choice among them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from .._checks import counted
from .._custom_types import Y
from .._solver import MultistepCoefficients
from .envelope import cost_to_reach, envelope
from .files import decode_record, read_record, write_record
from .fingerprints import mismatch
from .fit_law import objective
from .fit_plan import FittedPlan

_KIND, _VERSION = "fitted steps", 1
# For their distribution, steps are preferred to others with a smaller error only up to this ratio of errors. Distances
# of accurate steps are within the noise of the pilots.
_TOLERATED = 1.25
# Costs are sums of rounded numbers; and errors may be zero, whose logarithm does not exist.
_ROUNDING, _TINY = 1e-9, 1e-300


@dataclasses.dataclass(frozen=True, eq=False)
class FittedSteps:
    """A catalogue of fitted steps of different costs, from [`mlem_jax.fit_steps`][]. `print` it for a table.

    - `costs`, `seconds`: cost of one evaluation of each level, `(K,)`, in evaluations of the finest level, and in
        wall-clock seconds for a batch of `batch` trajectories on `device`.
    - `levels`, `coefficients`: those of each entry, as in [`mlem_jax.FittedPlan`][].
    - `errors`: RMS error of each held-out pilot's end state for each entry, `(E, P)`.
    - `fitted`: whether the coefficients of each entry are fitted, `(E,)`.
    - `distribution`: the weight of the distance of distributions in the objective of the fit.
    - `distances`: that distance for each entry, `(E,)`: between the pilots' end states and those of the reference, with
        their means and standard deviations, per root of the number of components. `None` in files of earlier versions.
    - `levels_id`, `state_id`: identify the levels and the shapes of the state (see `require`).
    """

    costs: Float[np.ndarray, " levels"]
    seconds: Float[np.ndarray, " levels"]
    batch: int
    device: str
    levels: tuple[tuple[int, ...], ...]
    coefficients: tuple[MultistepCoefficients, ...]
    errors: Float[np.ndarray, "entries pilots"]
    fitted: tuple[bool, ...]
    levels_id: tuple[str, ...]
    state_id: str
    distribution: float = 0.0
    distances: Float[np.ndarray, " entries"] | None = None

    def plan(
        self,
        *,
        budget: float | int | None = None,
        error: float | int | None = None,
        typical_error: float | int | None = None,
        in_seconds: bool = False,
    ) -> FittedPlan:
        """The best steps within a budget, or the cheapest that reach an error. The best ones have the smallest typical
        error. If the steps were fitted for the distribution, they have the smallest value of the objective of the fit,
        `sqrt((1 - w) * typical_error**2 + w * distance**2)` with `w = distribution`, among those with at most 1.25
        times the smallest typical error.

        Several levels are proposed only if their error, or the objective, is smaller than that of all cheaper fitted
        steps, those on single levels included. The plan's `speedup_over_single` compares with the best single level at
        the same error, whose cost is interpolated between the fitted numbers of steps on logarithmic axes.

        **Arguments:** exactly one of

        - `budget`: cost of a solve, in evaluations of the finest level;
        - `error`: root mean square error of the end state;
        - `typical_error`: geometric mean of the trajectories' errors;

        and `in_seconds`, whether the levels' costs are measured seconds instead of `costs`. The unit of `budget` is
        then the seconds of one evaluation of the finest level.

        Raises `ValueError` unless exactly one of the three is given, and if no entry has so small a cost or error.
        """
        given = {"budget": budget, "error": error, "typical_error": typical_error}
        chosen = [(name, value) for name, value in given.items() if value is not None]
        if len(chosen) != 1 or not chosen[0][1] > 0:
            raise ValueError(
                f"plan was given {', '.join(f'{k}={v}' for k, v in given.items())}; exactly one positive number is "
                "expected, for example plan(budget=4)."
            )
        ((name, value),) = chosen
        plans, entries = self._plans(in_seconds)
        if name == "budget":
            affordable = [i for i, plan in enumerate(plans) if plan.cost <= value + _ROUNDING]
            if not affordable:
                raise ValueError(
                    f"No fitted steps have a cost of {value:g} or less; the cheapest have "
                    f"{min(plan.cost for plan in plans):.3g}."
                )
            least = min(plans[i].typical_error for i in affordable)
            near = [i for i in affordable if plans[i].typical_error <= _TOLERATED * least]
            objectives = self._objectives
            return plans[min(near, key=lambda i: objectives[entries[i]])]
        accurate = [plan for plan in plans if getattr(plan, name) <= value]
        if not accurate:
            least = min(getattr(plan, name) for plan in plans)
            raise ValueError(
                f"No fitted steps reach {name}={value:g}; the most accurate ones reach {least:.3g}. Fit up to a larger "
                "cost, fit_steps(..., most=...), or take a solver of high order on the finest level."
            )
        return min(accurate, key=lambda plan: plan.cost)

    def plans(self, *, in_seconds: bool = False) -> list[FittedPlan]:
        """The plans of all useful entries by increasing cost: the entries with a single level, and those with several
        levels whose error or objective no cheaper entry has.

        `speedup_over_single` of a plan may be a little below 1: it interpolates between the costs of single levels, and
        steps of such a cost need not exist."""
        return self._plans(in_seconds)[0]

    @property
    def _typical_errors(self) -> Float[np.ndarray, " entries"]:
        return np.exp(np.mean(np.log(self.errors + _TINY), axis=1))

    @property
    def _objectives(self) -> Float[np.ndarray, " entries"]:
        """The objective of the fit for each entry; without distances the typical error."""
        if self.distances is None:
            return self._typical_errors
        return objective(self.distribution, self._typical_errors, self.distances)

    def _plans(self, in_seconds: bool) -> tuple[list[FittedPlan], list[int]]:
        """The plans of all useful entries and the index of each, by increasing cost."""
        unit = self.seconds / self.seconds[-1] if in_seconds else self.costs
        error, objectives = self._typical_errors, self._objectives
        cost = np.array(
            [
                float(table.evaluations @ unit[list(levels)])
                for levels, table in zip(self.levels, self.coefficients, strict=True)
            ]
        )
        alone = np.array([len(levels) == 1 for levels in self.levels])
        advice = ()
        if in_seconds:
            advice = (f"Costs are wall-clock seconds of batches of {self.batch} on {self.device}.",)
        kept = [
            i
            for i in np.argsort(cost, kind="stable").tolist()
            if alone[i] or not (_dominated(cost, error, i) and _dominated(cost, objectives, i))
        ]
        return [self._plan(i, unit, cost, error, alone, advice) for i in kept], kept

    def _plan(
        self,
        i: int,
        unit: Float[np.ndarray, " levels"],
        cost: Float[np.ndarray, " entries"],
        error: Float[np.ndarray, " entries"],
        alone: Bool[np.ndarray, " entries"],
        advice: tuple[str, ...],
    ) -> FittedPlan:
        """The plan of an entry, from the costs and typical errors of all of them."""
        single = envelope(cost[alone], error[alone])
        squares, logs = self.errors[i] ** 2, np.log(self.errors[i] + _TINY)
        mean = float(np.mean(squares))
        deviation = float(np.std(squares) / (2 * mean * len(squares) ** 0.5)) if mean > 0 else 0.0
        return FittedPlan(
            ts=np.asarray(self.coefficients[i].ts),
            levels=self.levels[i],
            coefficients=self.coefficients[i],
            costs=unit[list(self.levels[i])],
            cost=float(cost[i]),
            error=mean**0.5,
            relative_error_of_prediction=deviation,
            typical_error=float(error[i]),
            relative_error_of_typical=float(np.std(logs) / len(logs) ** 0.5),
            speedup_over_single=1.0 if alone[i] else float(cost_to_reach(*single, error[i]) / cost[i]),
            fitted=self.fitted[i],
            single_level=self.levels[_cheapest_to_reach(cost, error, alone, error[i])][0],
            finest_error=None,
            advice=advice,
            levels_id=self.levels_id,
            state_id=self.state_id,
        )

    def require(self, levels: Sequence[Any], y0: Y) -> None:
        """Raises `ValueError` unless the steps were fitted with these levels and a state of these shapes. Types,
        settings and numbers of the levels are compared."""
        found = mismatch("These steps were fitted with", self.levels_id, self.state_id, levels, y0)
        if found is not None:
            raise ValueError(f"{found} Fit them again: mlem_jax.fit_steps(terms, ts, y0s, key=key).")

    def save(self, path: str | Path) -> None:
        """Writes one `.npz` file atomically. Raises `OSError` if the disk is full."""
        write_record(path, _KIND, _VERSION, self)

    @classmethod
    def load(cls, path: str | Path) -> "FittedSteps":
        """Reads a file that `save` wrote. Raises `ValueError` for a damaged file or one of another kind or version."""
        remedy = "Fit them again: mlem_jax.fit_steps(...).save(FILE)."
        _, values = read_record(path, {_KIND: _VERSION}, "a file of fitted steps", remedy)
        return cls.from_values(values, path)

    @classmethod
    def from_values(cls, values: dict[str, Any], path: str | Path) -> "FittedSteps":
        """The catalogue from the fields in a file. Raises `ValueError` if one is missing."""
        tables = values.get("coefficients", {})
        try:
            found = tuple(MultistepCoefficients(**tables[str(i)]) for i in range(len(tables)))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: its coefficients are incomplete ({error}).") from error
        return decode_record(cls, {**values, "coefficients": found}, path)

    def __str__(self) -> str:
        # They are zero if the steps were fitted to the trajectories alone.
        distances = self.distances if self.distribution else None
        lines = [
            f"fitted steps for {counted(len(self.costs), 'level')}, errors of {self.errors.shape[1]} held-out pilots",
            "  cost  steps  evaluations of levels     typical error  RMS error  over single level"
            + ("" if distances is None else "  distribution"),
        ]
        for plan, entry in zip(*self._plans(False), strict=True):
            counts = ", ".join(
                f"{level + 1}: {count}"
                for level, count in zip(plan.levels, plan.coefficients.evaluations, strict=True)
            )
            gain = "" if len(plan.levels) == 1 else f"{plan.speedup_over_single:.2f}"
            if np.isinf(plan.speedup_over_single):
                gain = "not fitted"
            lines.append(
                f"{plan.cost:6.2f}  {len(plan.ts) - 1:5d}  {counts:24s}  {plan.typical_error:13.4g}  "
                f"{plan.error:9.4g}  {gain:>17s}"
                + ("" if distances is None else f"  {distances[entry]:12.4g}")
            )
        return "\n".join(lines)


def _cheapest_to_reach(
    cost: Float[np.ndarray, " n"],
    error: Float[np.ndarray, " n"],
    among: Bool[np.ndarray, " n"],
    target: float,
) -> int:
    """The index of the cheapest entry among some that reaches an error, or of the most accurate one if none does."""
    reach = among & (error <= target)
    return int(
        np.argmin(np.where(reach, cost, np.inf)) if reach.any() else np.argmin(np.where(among, error, np.inf))
    )


def _dominated(cost: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"], i: int) -> bool:
    """Whether a cheaper entry has at most the same error."""
    return bool(np.any((cost < cost[i]) & (error <= error[i])))
