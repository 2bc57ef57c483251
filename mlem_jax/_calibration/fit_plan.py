"""Plans with fitted coefficients, and the catalogue of them that one fit makes."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, PRNGKeyArray

from .._custom_types import Y
from .._fingerprint import level_id, state_id
from .._io import read_npz, write_safely
from .._solver.multistep import LinearMultistep
from .._solver.multistep_coefficients import MultistepCoefficients
from .abstract_plan import AbstractPlan

_VERSION = 1
_TABLE = ("ts", "drifts", "increments", "looks", "corrections", "repeats")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FittedPlan(AbstractPlan):
    """A plan of [`mlem_jax.LinearMultistep`][] steps, from `FittedSteps.plan`.

    What all plans offer is in [`mlem_jax.AbstractPlan`][]. `error` and its uncertainty are those of pilots that were
    held out of the fit; no model is involved.

    - `coefficients`: of the steps.
    - `typical_error`, `relative_error_of_typical`: likewise, the geometric mean of the trajectories' own errors, which
        a few trajectories that end elsewhere do not decide.
    - `speedup_over_single`: cost, at the same typical error, of fitted steps on the best single level, over `cost`; 1
        for such steps themselves, infinite where none that were fitted are so accurate.
    - `fitted`: whether the coefficients are fitted ones; the classical ones are kept where held-out pilots prefer them.
    """

    kind: ClassVar[str] = "fitted plan"
    version: ClassVar[int] = 1

    coefficients: MultistepCoefficients
    typical_error: float
    relative_error_of_typical: float
    speedup_over_single: float
    fitted: bool

    @property
    def deterministic(self) -> bool:
        """True: the steps have no randomness."""
        return True

    @property
    def expected_looks(self) -> Float[np.ndarray, " levels"]:
        """How often each kept level is evaluated, `(K,)`."""
        return self.coefficients.evaluations.astype(float)

    def solver(self, *, key: PRNGKeyArray | None = None, **settings: Any) -> LinearMultistep:
        """The solver for `plan.terms(terms)`, to which settings are passed. It has no randomness: `key` is ignored, and
        is there because the solvers of other plans want one."""
        del key
        return LinearMultistep(self.coefficients, **settings)

    @classmethod
    def _from_file(cls, values: dict[str, Any], path: str | Path) -> "FittedPlan":
        values = {**values, "coefficients": MultistepCoefficients(**values["coefficients"])}
        fields = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}
        if len(fields) < len(dataclasses.fields(cls)):
            raise ValueError(f"{path} is damaged: it holds {sorted(fields)} only.")
        return cls(**{**fields, "levels": tuple(fields["levels"]), "advice": tuple(fields["advice"])})

    def __str__(self) -> str:
        kind = "fitted" if self.fitted else "Adams-Bashforth"
        names = ", ".join(str(level + 1) for level in self.levels)
        alone = len(self.levels) == 1
        lines = [
            f"{kind} steps on level {names} alone, {len(self.ts) - 1} steps"
            if alone
            else f"{kind} steps, levels {names}, {len(self.ts) - 1} steps",
            "level  cost each  evaluations",
        ]
        for level, cost, count in zip(self.levels, self.costs, self.coefficients.evaluations, strict=True):
            lines.append(f"{level + 1:5d}  {cost:9.4f}  {count:11d}")
        lines.append(f"cost             {self.cost:.2f} finest-level evaluations")
        for name, value, spread in (
            ("predicted error", self.error, self.relative_error_of_prediction),
            ("  typical", self.typical_error, self.relative_error_of_typical),
        ):
            lines.append(f"{name:15s}  {value:.4g} ± {100 * spread:.0f}%")
        if not alone:
            gain = self.speedup_over_single
            lines.append(
                "no single level's fitted steps were found to be so accurate"
                if np.isinf(gain)
                else f"{gain:.2f} times cheaper than the best single level with fitted steps, at that typical error"
            )
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, eq=False)
class FittedSteps:
    """A catalogue of fitted steps of all costs, from [`mlem_jax.fit_steps`][]. `print` it for a table.

    - `costs`, `seconds`: of one evaluation of each level, `(K,)`: in evaluations of the finest one, and wall-clock
        seconds for a batch of `batch` trajectories on `device`.
    - `levels`, `coefficients`: of each entry, as in [`mlem_jax.FittedPlan`][].
    - `errors`: RMS error of each held-out pilot's end state, by entry, `(E, P)`.
    - `fitted`: whether the coefficients of an entry are fitted ones, `(E,)`.
    - `levels_id`, `state_id`: what the steps belong to (see `require`).
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

    def plan(
        self,
        *,
        budget: float | int | None = None,
        error: float | int | None = None,
        typical_error: float | int | None = None,
        in_seconds: bool = False,
    ) -> FittedPlan:
        """The best steps within a budget, or the cheapest that reach an error.

        Several levels are proposed only where their error is smaller than that of fitted steps on the best single level
        at the same cost (between the numbers of steps that were fitted, by straight lines in logarithms).

        **Arguments:** exactly one of

        - `budget`: cost of a solve, in evaluations of the finest level;
        - `error`: root mean square error of the end state;
        - `typical_error`: geometric mean of the trajectories' errors;

        and `in_seconds`, to weigh levels by measured seconds rather than by `costs`: the unit of `budget` is then the
        time of one evaluation of the finest level.

        Raises `ValueError` for none or several of them, or where no entry is so cheap or so accurate.
        """
        given = {"budget": budget, "error": error, "typical_error": typical_error}
        chosen = [(name, value) for name, value in given.items() if value is not None]
        if len(chosen) != 1 or not chosen[0][1] > 0:
            raise ValueError(
                f"plan was given {', '.join(f'{k}={v}' for k, v in given.items())}; exactly one positive number is "
                "expected, for example plan(budget=4)."
            )
        ((name, value),) = chosen
        plans = self._plans(in_seconds)
        if name == "budget":
            affordable = [plan for plan in plans if plan.cost <= value + 1e-9]
            if not affordable:
                raise ValueError(
                    f"No fitted steps cost as little as {value:g}; the cheapest cost "
                    f"{min(plan.cost for plan in plans):.3g}."
                )
            return min(affordable, key=lambda plan: plan.typical_error)
        accurate = [plan for plan in plans if getattr(plan, name) <= value]
        if not accurate:
            least = min(getattr(plan, name) for plan in plans)
            raise ValueError(
                f"No fitted steps reach {name}={value:g}; the most accurate ones reach {least:.3g}. Fit up to a larger "
                "cost, fit_steps(..., most=...), or take a solver of high order on the finest level."
            )
        return min(accurate, key=lambda plan: plan.cost)

    def _plans(self, in_seconds: bool) -> list[FittedPlan]:
        """All entries that are worth their cost."""
        unit = self.seconds / self.seconds[-1] if in_seconds else self.costs
        typical = np.exp(np.mean(np.log(self.errors + 1e-300), axis=1))
        cost = np.array(
            [
                float(table.evaluations @ unit[list(levels)])
                for levels, table in zip(self.levels, self.coefficients, strict=True)
            ]
        )
        alone = np.array([len(levels) == 1 for levels in self.levels])
        x, y = envelope(cost[alone], typical[alone])
        found = []
        for i in range(len(cost)):
            needed = cost_to_reach(x, y, typical[i])
            gain = 1.0 if alone[i] else needed / cost[i]
            if gain < 1 or (not alone[i] and _dominated(cost, typical, i)):
                continue
            squares = self.errors[i] ** 2
            mean = float(np.mean(squares))
            spread = float(np.std(squares) / (2 * mean * len(squares) ** 0.5)) if mean > 0 else 0.0
            logs = np.log(self.errors[i] + 1e-300)
            found.append(
                FittedPlan(
                    ts=np.asarray(self.coefficients[i].ts),
                    levels=self.levels[i],
                    coefficients=self.coefficients[i],
                    costs=unit[list(self.levels[i])],
                    cost=float(cost[i]),
                    error=mean**0.5,
                    relative_error_of_prediction=spread,
                    typical_error=float(typical[i]),
                    relative_error_of_typical=float(np.std(logs) / len(logs) ** 0.5),
                    speedup_over_single=float(gain),
                    fitted=self.fitted[i],
                    finest_error=None,
                    advice=(),
                )
            )
        return sorted(found, key=lambda plan: plan.cost)

    def require(self, levels: tuple[Any, ...], y0: Y) -> None:
        """Raises `ValueError` unless the steps were fitted with these levels and a state of these shapes."""
        ids = tuple(level_id(level) for level in levels)
        if ids != self.levels_id or state_id(y0) != self.state_id:
            raise ValueError(
                "These steps were fitted with other levels or a state of other shapes. Fit them again: "
                "mlem_jax.fit_steps(terms, ts, y0s, key=key)."
            )

    def save(self, path: str | Path) -> None:
        """Writes one `.npz` file, atomically. Raises `OSError` that says so where the disk is full."""
        arrays: dict[str, Any] = {"costs": self.costs, "seconds": self.seconds, "errors": self.errors}
        for i, table in enumerate(self.coefficients):
            arrays |= {f"{i}.{name}": np.asarray(getattr(table, name)) for name in _TABLE}
        meta = {
            "kind": "fitted steps",
            "version": _VERSION,
            "batch": self.batch,
            "device": self.device,
            "levels": self.levels,
            "fitted": self.fitted,
            "levels_id": self.levels_id,
            "state_id": self.state_id,
        }
        text = np.array(json.dumps(meta))
        write_safely(Path(path), lambda file: np.savez_compressed(file, meta=text, **arrays))

    @classmethod
    def load(cls, path: str | Path) -> "FittedSteps":
        """Reads what `save` wrote. Raises `ValueError` for another, a newer or a damaged file."""
        remedy = "Fit them again: mlem_jax.fit_steps(...).save(FILE)."
        arrays = read_npz(path, "a file of fitted steps", remedy)
        meta = json.loads(str(arrays.pop("meta"))) if "meta" in arrays else {}
        if meta.pop("kind", None) != "fitted steps":
            raise ValueError(f"{path} is not a file of fitted steps: it holds {sorted(arrays)}. {remedy}")
        version = meta.pop("version")
        if version != _VERSION:
            raise ValueError(f"{path} has version {version} and this mlem_jax reads {_VERSION}. {remedy}")
        for name in ("fitted", "levels_id"):
            meta[name] = tuple(meta[name])
        meta["levels"] = tuple(tuple(levels) for levels in meta["levels"])
        tables = [
            MultistepCoefficients(**{name: arrays.pop(f"{i}.{name}") for name in _TABLE})
            for i in range(len(meta["levels"]))
        ]
        return cls(coefficients=tuple(tables), **arrays, **meta)

    def __str__(self) -> str:
        lines = [
            f"fitted steps for {len(self.costs)} level{'s' if len(self.costs) > 1 else ''}, errors of "
            f"{self.errors.shape[1]} held-out pilots",
            "  cost  steps  evaluations of levels     typical error  RMS error  over single level",
        ]
        for plan in self._plans(in_seconds=False):
            counts = ", ".join(
                f"{level + 1}: {count}"
                for level, count in zip(plan.levels, plan.coefficients.evaluations, strict=True)
            )
            gain = "" if len(plan.levels) == 1 else f"{plan.speedup_over_single:.2f}"
            lines.append(
                f"{plan.cost:6.2f}  {len(plan.ts) - 1:5d}  {counts:24s}  {plan.typical_error:13.4g}  "
                f"{plan.error:9.4g}  {gain:>17s}"
            )
        return "\n".join(lines)


def envelope(
    cost: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Those that nothing as cheap beats, by increasing cost."""
    order = np.lexsort((error, cost))
    kept = [i for n, i in enumerate(order) if n == 0 or error[i] < error[order[:n]].min()]
    return cost[kept], error[kept]


def _dominated(cost: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"], i: int) -> bool:
    return bool(np.any((cost < cost[i]) & (error <= error[i])))


def cost_to_reach(cost: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"], target: float) -> float:
    """Between the points of an envelope by straight lines in logarithms; beyond its end infinite."""
    if target < error[-1]:
        return np.inf
    return float(np.exp(np.interp(-np.log(target), -np.log(error), np.log(cost))))
