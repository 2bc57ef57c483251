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
    """A plan with fitted coefficients for [`mlem_jax.LinearMultistep`][], from [`mlem_jax.FittedSteps.plan`][].

    The attributes and methods of all plans are described at [`mlem_jax.AbstractPlan`][]. `error` and its uncertainty
    are those of pilots that were held out of the fit; no model is used.

    - `coefficients`: the coefficients of the steps.
    - `typical_error`, `relative_error_of_typical`: the geometric mean of the errors of held-out pilots, which a few
        trajectories that end in another basin do not dominate, and its relative standard error.
    - `speedup_over_single`: the cost at which fitted steps on the best single level have the same typical error, over
        `cost`. It is 1 for plans with a single level, and infinite if no single level was fitted to this error.
    - `single_level`: index of that single level.
    - `fitted`: whether the coefficients are fitted; they are the classical ones if these are better on held-out pilots.
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
        """The number of evaluations of each kept level, `(K,)`."""
        return self.coefficients.evaluations.astype(float)

    def firing_pattern(self, *, key: PRNGKeyArray | None = None) -> Bool[np.ndarray, "steps levels"]:
        """The steps in which each kept level is evaluated, `(N, K)`, the same for all keys."""
        del key
        higher = np.asarray(self.coefficients.evaluated)
        return np.concatenate([np.ones((len(higher), 1), bool), higher], axis=1)

    def solver(self, *, key: PRNGKeyArray | None = None, **settings: Any) -> LinearMultistep:
        """The solver for `plan.terms(terms)`, with `settings`. It has no randomness; `key` is ignored and exists
        because other plans need one."""
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
        for name, value, deviation in (
            ("predicted error", self.error, self.relative_error_of_prediction),
            ("  geometric mean", self.typical_error, self.relative_error_of_typical),
        ):
            lines.append(f"{name:21s}  {value:.4g} ± {100 * deviation:.0f}%, of held-out pilots")
        if self.finest_error is not None:
            lines.append(f"  finest level itself  {self.finest_error:.4g}  (not in the predicted error)")
        if not alone:
            rival, gain = f"level {self.single_level + 1} alone with fitted steps", self.speedup_over_single
            lines.append(
                f"no speed-up is known: {rival}, the best single level, was not fitted to this error"
                if np.isinf(gain)
                else f"speed-up at that error {gain:.2f} over {rival}, the best single level (geometric mean)"
            )
        return "\n".join([*lines, *self.advice])
