"""The plan of a multilevel solver with coins, or of a single level."""

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

# Larger ratios are not printed: their denominator is a linear error close to zero, of which only that is known.
_LARGEST_RATIO = 100.0


def times(ratio: float) -> str:
    """A ratio as text."""
    return f"{ratio:.2g} times" if ratio < _LARGEST_RATIO else f"over {_LARGEST_RATIO:.0f} times"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Plan(AbstractPlan):
    """A plan of [`mlem_jax.MLEM`][] or [`mlem_jax.MLAB2`][], or of a single level.

    The attributes and methods of all plans are described at [`mlem_jax.AbstractPlan`][]. A plan with a single level has
    no coins; `advice` gives the reason. `error` combines `discretisation` and `coin_error`: it is the root of the sum
    of their squares, or more if the two errors had the same direction in the trial runs (`Trials.alignment`).

    - `table`: probability of each kept level in each step, `(N, K)`.
    - `coins`: the coin policy.
    - `method`: how steps are taken, [`mlem_jax.EulerMaruyama`][] or [`mlem_jax.AdamsBashforth`][].
    - `discretisation`: the error of the finest level alone with the same steps.
    - `coin_error`: the error that the coins add.
    - `nonlinearity`: `coin_error`, which takes the trial runs into account, over that of the linear model alone.
    - `speedup_over_finest`, `speedup_over_single`: the cost at which the same method on the finest level alone, and on
        the best single level, has the same predicted error, over `cost`.
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
        """Whether solves with different keys are equal: with a single level or deterministic coins."""
        return len(self.levels) == 1 or self.coins.deterministic

    @property
    def expected_firings(self) -> Float[np.ndarray, " levels"]:
        """The sum of each kept level's probabilities, `(K,)`."""
        return self.table.sum(axis=0)

    @property
    def probabilities(self) -> TabulatedProbabilities:
        """The probabilities of the kept levels as a function of time."""
        return TabulatedProbabilities(self.ts[:-1], self.table)

    def firing_pattern(self, *, key: PRNGKeyArray) -> Bool[np.ndarray, "steps levels"]:
        """The steps in which each kept level fires with this key, `(N, K)`. No level is evaluated."""
        solver = self.solver(key=key)
        if not isinstance(solver, AbstractMultilevelSolver) or len(self.levels) == 1:
            return np.ones(self.table.shape, bool)
        return firing_counts(self.coins, self.table, solver.key[None])[0] > 0

    def solver(self, *, key: PRNGKeyArray, **settings: Any) -> diffrax.AbstractSolver:
        """The solver for `plan.terms(terms)`. It is the multilevel solver, with `settings` such as `record`, `shared`
        and `check_finite`; for a plan with a single level and no settings it is the method's single-level solver.
        Raises `TypeError` for a setting that the multilevel solver does not have."""
        if len(self.levels) == 1 and not settings:
            return self.method.single_level_solver()
        return self.method.multilevel_solver(self.probabilities, coins=self.coins, key=key, **settings)

    def cut(self, start: float) -> "Plan":
        """See [`mlem_jax.AbstractPlan`][]. The cost is that of the remaining steps."""
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
            advice=(f"Cut from a longer plan at {self.ts[first]:g}: its error is unknown.",),
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
        percent = 100 * self.relative_error_of_prediction
        lines.append(f"predicted error        {self.error:.4g} ± {percent:.0f}%")
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
