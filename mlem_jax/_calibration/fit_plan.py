"""Plans with fitted coefficients."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray

from .._solver import LinearMultistep, MultistepCoefficients
from .abstract_plan import AbstractPlan
from .files import decode_record


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
    - `single_level`: index of that single level.
    - `fitted`: whether the coefficients are fitted ones; the classical ones are kept where held-out pilots prefer them.
    """

    kind: ClassVar[str] = "fitted plan"
    version: ClassVar[int] = 1

    coefficients: MultistepCoefficients
    typical_error: float
    relative_error_of_typical: float
    speedup_over_single: float
    single_level: int
    fitted: bool

    @property
    def deterministic(self) -> bool:
        """True: the steps have no randomness."""
        return True

    @property
    def expected_firings(self) -> Float[np.ndarray, " levels"]:
        """How often each kept level is evaluated, `(K,)`."""
        return self.coefficients.evaluations.astype(float)

    def firing_pattern(self, *, key: PRNGKeyArray | None = None) -> Bool[np.ndarray, "steps levels"]:
        """In which steps each kept level is evaluated, `(N, K)`: the same for all keys."""
        del key
        higher = np.asarray(self.coefficients.evaluated)
        return np.concatenate([np.ones((len(higher), 1), bool), higher], axis=1)

    def solver(self, *, key: PRNGKeyArray | None = None, **settings: Any) -> LinearMultistep:
        """The solver for `plan.terms(terms)`, to which settings are passed. It has no randomness: `key` is ignored, and
        is there because the solvers of other plans want one."""
        del key
        return LinearMultistep(self.coefficients, **settings)

    @classmethod
    def _from_file(cls, values: dict[str, Any], path: str | Path) -> "FittedPlan":
        try:
            table = MultistepCoefficients(**values.get("coefficients", {}))
        except TypeError as error:
            raise ValueError(f"{path} is damaged: its coefficients are incomplete ({error}).") from error
        return decode_record(cls, {**values, "coefficients": table}, path)

    def __str__(self) -> str:
        kind = "fitted" if self.fitted else "Adams-Bashforth"
        steps, alone = len(self.ts) - 1, len(self.levels) == 1
        names = ", ".join(str(level + 1) for level in self.levels)
        lines = [
            f"{kind} steps on level {names} alone, {steps} steps"
            if alone
            else f"{kind} steps on levels {names}, {steps} steps",
            "level  cost each  evaluations",
        ]
        for level, cost, count in zip(self.levels, self.costs, self.coefficients.evaluations, strict=True):
            lines.append(f"{level + 1:5d}  {cost:9.4f}  {count:11d}")
        lines.append(f"cost                   {self.cost:.2f} finest-level evaluations")
        for name, value, spread in (
            ("predicted error", self.error, self.relative_error_of_prediction),
            ("  geometric mean", self.typical_error, self.relative_error_of_typical),
        ):
            lines.append(f"{name:21s}  {value:.4g} ± {100 * spread:.0f}%, of held-out pilots")
        if self.finest_error is not None:
            lines.append(f"  finest level itself  {self.finest_error:.4g}  (not in the predicted error)")
        if not alone:
            rival, gain = f"level {self.single_level + 1} alone with fitted steps", self.speedup_over_single
            lines.append(
                f"no gain to quote: {rival}, the best single level, was not fitted to such an error"
                if np.isinf(gain)
                else f"speed-up at that error {gain:.2f} over {rival}, the best single level (geometric mean)"
            )
        return "\n".join([*lines, *self.advice])
