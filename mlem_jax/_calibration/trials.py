"""What trial runs of the multilevel method showed on the pilots, and how that corrects the linear model."""

import dataclasses

import numpy as np
from jaxtyping import Float

# Errors are clipped to this range before logarithms are taken: a trial may explode, or reproduce the reference exactly.
_SMALLEST, _LARGEST = 1e-30, 1e30
# The part of a trial's error that is always taken for a nonlinear one, so that its logarithm exists.
_LEAST_NONLINEAR = 1e-3


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Trials:
    """Trial runs on the pilot trajectories, one row for each policy and budget, `(T,)`.

    - `coins`: the policies' names.
    - `budget`: of the run, in evaluations of the finest level.
    - `predicted`, `measured`: the coins' part of the error (RMS) as the linear model predicts it and as it was.
    - `uncertainty`: the relative standard error of `measured`, from the differences between pilots.
    - `alignment`: the cosine of the angle between the coins' error and that of the steps, over all pilots and
        components, for deterministic policies; 0 for random ones, whose error is as often of either sign, and where it
        was not measured.
    """

    coins: tuple[str, ...]
    budget: Float[np.ndarray, " trials"]
    predicted: Float[np.ndarray, " trials"]
    measured: Float[np.ndarray, " trials"]
    uncertainty: Float[np.ndarray, " trials"]
    alignment: Float[np.ndarray, " trials"] | None = None

    @classmethod
    def none(cls) -> "Trials":
        """No trial runs at all."""
        return cls(
            coins=(), **{name: np.zeros(0) for name in ("budget", "predicted", "measured", "uncertainty")}
        )

    def corrected(
        self, coins: str, budget: float | int, linear: float, uncertainty: float
    ) -> tuple[float, float]:
        """The coins' error at this budget and its relative standard error, from those of the linear model and from
        what trial runs of the policy showed, if there were any.

        A trial's squared error beyond the linear model's is due to second-order terms. These depend on the length of
        the windows between two looks (the budget) and not on how well the linear parts happen to cancel, so they are
        added; where a trial erred less than predicted, the prediction is multiplied by that ratio. Both are
        interpolated between budgets on logarithmic axes and constant beyond.
        """
        mine = self._rows(coins)
        if not mine:
            return linear, uncertainty
        x, here = np.log(self.budget[mine]), np.log(budget)
        predicted, measured = (
            np.clip(values[mine], _SMALLEST, _LARGEST) for values in (self.predicted, self.measured)
        )
        beyond = np.sqrt(np.maximum(measured**2 - predicted**2, (_LEAST_NONLINEAR * measured) ** 2))
        factor = np.exp(np.interp(here, x, np.log(np.minimum(1.0, measured / predicted))))
        error = float(np.hypot(factor * linear, np.exp(np.interp(here, x, np.log(beyond)))))
        return error, max(uncertainty, float(np.interp(here, x, self.uncertainty[mine])))

    def total_error(self, coins: str, budget: float | int, coin_error: float, discretisation: float) -> float:
        """The error of coins and steps together: `sqrt(a**2 + b**2 + 2 c a b)` with `c` the larger alignment of the two
        trials next to the budget, or 0. Where the sign changes depends on more than the budget, and a prediction does
        not rely on errors that cancel."""
        mine = self._rows(coins)
        alignment = 0.0
        if mine and self.alignment is not None:
            above = int(np.searchsorted(self.budget[mine], budget))
            alignment = max(0.0, *self.alignment[mine][max(above - 1, 0) : above + 1].tolist())
        return float(np.sqrt(coin_error**2 + discretisation**2 + 2 * alignment * coin_error * discretisation))

    def _rows(self, coins: str) -> list[int]:
        """Of the trials of a policy, by growing budget."""
        mine = [i for i, name in enumerate(self.coins) if name == coins]
        return sorted(mine, key=lambda i: self.budget[i])
