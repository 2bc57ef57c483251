"""The plan of a multilevel solver with coins, or of one level alone."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import diffrax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray

from .._coins import AbstractCoins, ResumedCoins
from .._probabilities import TabulatedProbabilities
from .._solver import AbstractMethod, AbstractMultilevelSolver, expected_evaluations
from .abstract_plan import AbstractPlan
from .files import decode_record
from .linear_model import firing_counts

# A ratio to a linear error that all but vanishes says no more than that.
_LARGEST_RATIO = 100.0


def times(ratio: float) -> str:
    """A ratio in words."""
    return f"{ratio:.2g} times" if ratio < _LARGEST_RATIO else f"over {_LARGEST_RATIO:.0f} times"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Plan(AbstractPlan):
    """A plan of [`mlem_jax.MLEM`][] or [`mlem_jax.MLAB2`][], or of one level alone.

    What all plans offer is in [`mlem_jax.AbstractPlan`][]. One level alone means no coins: `advice` says why. `error`
    is that of `discretisation` and `coin_error` together: the root of the sum of their squares, or more where the
    trial runs showed that they point the same way (`Trials.alignment`).

    - `table`: probability of each kept level in each step, `(N, K)`.
    - `coins`: the policy.
    - `method`: of the steps, [`mlem_jax.EulerMaruyama`][] or [`mlem_jax.AdamsBashforth`][].
    - `discretisation`: what the finest level alone would err with the same steps.
    - `coin_error`: what the coins add.
    - `nonlinearity`: `coin_error`, which contains what the calibration's trial runs showed, over what the linear
        model alone would say.
    - `speedup_over_finest`, `speedup_over_single`: cost, at the same predicted error, of the same method on the
        finest level alone, and on the best single level, over `cost`.
    """

    kind: ClassVar[str] = "plan with coins"
    version: ClassVar[int] = 1

    table: Float[np.ndarray, "steps levels"]
    coins: AbstractCoins
    method: AbstractMethod
    discretisation: float
    coin_error: float
    nonlinearity: float
    speedup_over_finest: float
    speedup_over_single: float

    @property
    def deterministic(self) -> bool:
        """Whether solves with different keys are the same."""
        return len(self.levels) == 1 or self.coins.deterministic

    @property
    def expected_firings(self) -> Float[np.ndarray, " levels"]:
        """The sum of each kept level's probabilities, `(K,)`."""
        return self.table.sum(axis=0)

    @property
    def probabilities(self) -> TabulatedProbabilities:
        """Probabilities of the kept levels as a function of time."""
        return TabulatedProbabilities(self.ts[:-1], self.table)

    def firing_pattern(self, *, key: PRNGKeyArray) -> Bool[np.ndarray, "steps levels"]:
        """In which steps each kept level's coin comes up for a key, without a solve."""
        solver = self.solver(key=key)
        if not isinstance(solver, AbstractMultilevelSolver) or len(self.levels) == 1:
            return np.ones(self.table.shape, bool)
        return firing_counts(self.coins, self.table, solver.key[None])[0] > 0

    def solver(self, *, key: PRNGKeyArray, **settings: Any) -> diffrax.AbstractSolver:
        """The solver for `plan.terms(terms)`: a multilevel one, to which further settings (`record`, `shared`,
        `check_finite`) are passed. Where one level alone is best and there are no settings, the method's solver for one
        level. Raises `TypeError` for a setting that the multilevel solver does not have."""
        if len(self.levels) == 1 and not settings:
            return self.method.single_level_solver()
        return self.method.multilevel_solver(self.probabilities, coins=self.coins, key=key, **settings)

    def cut(self, start: float) -> "Plan":
        """See [`mlem_jax.AbstractPlan`][]. Its cost counts the steps that are left."""
        first = self._first_step(start)
        table, coins, evaluations = self.table[first:], self.coins, np.array([len(self.ts) - 1.0 - first])
        if len(self.levels) > 1:
            coins = ResumedCoins.after(coins, jnp.asarray(self.table[:first], self.grid.dtype))
            rest = TabulatedProbabilities(self.ts[first:-1], table)
            evaluations = expected_evaluations(rest, self.ts[first:], method=self.method, coins=coins)
        unknown = float("nan")
        return dataclasses.replace(
            self,
            ts=self.ts[first:],
            table=table,
            coins=coins,
            cost=float(np.asarray(evaluations) @ self.costs),
            error=unknown,
            discretisation=unknown,
            coin_error=unknown,
            relative_error_of_prediction=unknown,
            nonlinearity=unknown,
            speedup_over_finest=unknown,
            speedup_over_single=unknown,
            advice=(f"Cut at {self.ts[first]:g} from a longer plan: its error is not known.",),
        )

    @classmethod
    def _from_file(cls, values: dict[str, Any], path: str | Path) -> "Plan":
        return decode_record(cls, values, path)

    def __str__(self) -> str:
        firings, steps = self.expected_firings, len(self.ts) - 1
        method = self.method.single_level_name
        alone = f"{method} on level {self.levels[-1] + 1} alone, {steps} steps"
        lines = [
            alone if len(self.levels) == 1 else f"{self.method.name}, {steps} steps, {self.coins.name}",
            "level  cost each  expected firings",
        ]
        for column, level in enumerate(self.levels):
            lines.append(f"{level + 1:5d}  {self.costs[column]:9.4f}  {firings[column]:16.1f}")
        lines.append(f"expected cost          {self.cost:.2f} finest-level evaluations")
        spread = self.relative_error_of_prediction
        lines.append(f"predicted error        {self.error:.4g} ± {100 * spread:.0f}%")
        lines.append(f"  steps ({method})".ljust(23) + f"{self.discretisation:.4g}")
        lines.append(
            f"  coins                {self.coin_error:.4g}  ({times(self.nonlinearity)} the linear model's)"
        )
        if self.finest_error is not None:
            lines.append(f"  finest level itself  {self.finest_error:.4g}  (not in the predicted error)")
        lines.append(
            f"speed-up at that error {self.speedup_over_finest:.1f} over {method} on the finest level,"
        )
        lines.append(f"                       {self.speedup_over_single:.1f} over the best single level")
        return "\n".join([*lines, *self.advice])
