"""From a calibration and one number, a budget or a target error, to everything that a solve needs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import diffrax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._coins import AbstractCoins, IndependentCoins, NestedCoins, StratifiedCoins, SystematicCoins
from .._custom_types import Clock
from .._io import read_npz, write_safely
from .._probabilities.probabilities import TabulatedProbabilities
from .._solver.method import multilevel_solver, SINGLE, single_level_solver
from .._solver.mlab2 import MLAB2
from .._solver.mlem import MLEM
from .._term import find_multilevel_term, MultilevelTerm

_NAMED = {
    "IndependentCoins": IndependentCoins,
    "NestedCoins": NestedCoins,
    "StratifiedCoins": StratifiedCoins,
}


def coins_name(coins: AbstractCoins) -> str:
    """What a policy is called in files and tables."""
    if isinstance(coins, SystematicCoins) and coins.offset is not None:
        return f"SystematicCoins({np.asarray(coins.offset).tolist()})"
    return type(coins).__name__


def coins_named(name: str) -> AbstractCoins:
    """The policy of that name."""
    if name in _NAMED:
        return _NAMED[name]()
    if name.startswith("SystematicCoins"):
        rest = name.removeprefix("SystematicCoins").strip("()")
        return SystematicCoins(json.loads(rest) if rest else None)
    raise ValueError(f"{name} is not one of mlem_jax's coins; plans with coins of your own cannot be loaded.")


def keep_levels(
    terms: PyTree, levels: tuple[int, ...], *, costs: Float[np.ndarray, " k"] | None = None
) -> PyTree:
    """The same terms with some of their levels. Raises `ValueError` if there are fewer."""
    place, term = find_multilevel_term(terms)
    if len(term.levels) <= levels[-1]:
        raise ValueError(
            f"The plan uses level {levels[-1] + 1} and the MultilevelTerm has {len(term.levels)} "
            "levels. Pass the terms that were calibrated."
        )
    kept = MultilevelTerm(*[term.levels[k] for k in levels], costs=costs)
    if place is None:
        return kept
    return diffrax.MultiTerm(*(kept if i == place else other for i, other in enumerate(terms.terms)))


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """How to solve within a budget, and what will come of it. From
    [`mlem_jax.make_plan`][] or `Calibration.plan`; `print` it.

    !!! example

        ```python
        plan = calibration.plan(budget=12)
        diffrax.diffeqsolve(
            plan.terms(terms), plan.solver(key=key), plan.ts[0], plan.ts[-1], None, y0,
            stepsize_controller=diffrax.StepTo(plan.ts),
        )
        ```

    Errors are root mean squares over trajectories and components of the state.

    - `ts`: times of the steps, `(N + 1,)`.
    - `levels`: which of the calibrated levels are kept, as indices, cheapest first. One level alone means
        no coins: `advice` says why.
    - `table`: probability of each kept level in each step, `(N, K)`.
    - `coins`: the policy.
    - `order`: of the steps: 1 for [`mlem_jax.MLEM`][], on one level alone [`diffrax.Euler`][]; 2 for
        [`mlem_jax.MLAB2`][], with its `clock`.
    - `costs`: of one evaluation of each kept level, in finest-level evaluations, `(K,)`.
    - `cost`: expected cost in finest-level evaluations.
    - `error`: predicted distance to the exact solution of the finest level: the root of the sum of squares of
        `discretisation` and `coin_error`.
    - `relative_error_of_prediction`: its relative standard error, from the spread over pilot trajectories.
    - `nonlinearity`: `coin_error`, which contains what the calibration's trial runs showed, over what the linear
        model alone would say.
    - `finest_error`: the finest level's own error, if known; not contained in `error`.
    - `speedup_over_finest`, `speedup_over_single`: cost, at the same predicted error, of the same order's method on
        the finest level alone, and on the best single level, over `cost`.
    - `advice`: remarks in words, one each.
    """

    ts: Float[np.ndarray, " times"]
    levels: tuple[int, ...]
    table: Float[np.ndarray, "steps levels"]
    coins: AbstractCoins
    order: int
    clock: Clock
    costs: Float[np.ndarray, " levels"]
    cost: float
    error: float
    discretisation: float
    coin_error: float
    relative_error_of_prediction: float
    nonlinearity: float
    speedup_over_finest: float
    speedup_over_single: float
    finest_error: float | None
    advice: tuple[str, ...]

    @property
    def probabilities(self) -> TabulatedProbabilities:
        """Probabilities of the kept levels as a function of time."""
        return TabulatedProbabilities(self.ts[:-1], self.table)

    def solver(self, *, key: PRNGKeyArray, **settings: Any) -> MLEM | MLAB2 | diffrax.Euler:
        """The solver for `plan.terms(terms)`: a multilevel one (further settings are passed to it), or where one
        level alone is best the method of that order."""
        if len(self.levels) == 1:
            return single_level_solver(self.order, self.clock)
        return multilevel_solver(
            self.order, self.clock, self.probabilities, coins=self.coins, key=key, **settings
        )

    def terms(self, terms: PyTree) -> PyTree:
        """The same terms with the kept levels only. Raises `ValueError` for fewer levels than were
        calibrated."""
        return keep_levels(terms, self.levels, costs=self.costs)

    @property
    def grid(self) -> Float[Array, " times"]:
        """`ts` as a JAX array, for `diffrax.StepTo`."""
        return jnp.asarray(self.ts, jnp.result_type(float))

    def save(self, path: str | Path) -> None:
        """Writes one `.npz` file, in one step. Raises `OSError` that says so where the disk is full."""
        path = Path(path)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["coins"] = coins_name(self.coins)
        coins_named(str(values["coins"]))
        arrays = {name: values.pop(name) for name in ("ts", "table", "costs")}
        text = np.array(json.dumps(values))
        write_safely(path, lambda file: np.savez_compressed(file, plan=text, **arrays))

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Reads what `save` wrote. Raises `ValueError` for another or a damaged file."""
        arrays = read_npz(path, "a plan", "Make it again: calibration.plan(...).save(FILE).")
        if set(arrays) != {"plan", "ts", "table", "costs"}:
            raise ValueError(f"{path} is not a plan: it holds {sorted(arrays)}.")
        values = json.loads(str(arrays.pop("plan")))
        values["coins"] = coins_named(values["coins"])
        values["levels"], values["advice"] = tuple(values["levels"]), tuple(values["advice"])
        return cls(**arrays, **values)

    def __str__(self) -> str:
        looks, steps = self.table.sum(0), len(self.ts) - 1
        method, several = SINGLE[self.order], "MLEM" if self.order == 1 else "MLAB2"
        alone = f"{method} on level {self.levels[-1] + 1} alone, {steps} steps"
        lines = [
            alone if len(self.levels) == 1 else f"{several}, {steps} steps, {coins_name(self.coins)}",
            "level  cost each  expected looks",
        ]
        for column, level in enumerate(self.levels):
            lines.append(f"{level + 1:5d}  {self.costs[column]:9.4f}  {looks[column]:14.1f}")
        lines.append(f"expected cost          {self.cost:.2f} finest-level evaluations")
        spread = self.relative_error_of_prediction
        lines.append(f"predicted error        {self.error:.4g} ± {100 * spread:.0f}%")
        lines.append(f"  steps ({method})".ljust(23) + f"{self.discretisation:.4g}")
        lines.append(f"  coins                {self.coin_error:.4g}  (nonlinearity {self.nonlinearity:.2f})")
        if self.finest_error is not None:
            lines.append(f"  finest level itself  {self.finest_error:.4g}  (not in the predicted error)")
        lines.append(
            f"speed-up at that error {self.speedup_over_finest:.1f} over {method} on the finest level, "
        )
        lines[-1] += f"{self.speedup_over_single:.1f} over the best single level"
        return "\n".join([*lines, *self.advice])
