"""The record of trial runs on the pilots, and the correction of the linear model by it."""

import dataclasses

import numpy as np
from jaxtyping import Float

# Errors are clipped to this range before their logarithm is taken: a trial may diverge, or reproduce the reference.
_SMALLEST, _LARGEST = 1e-30, 1e30
# The least nonlinear part of a trial's error, as a fraction of the error, so that its logarithm exists. Added in
# squares it changes the error by 5e-7.
_LEAST_NONLINEAR = 1e-3


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Trials:
    """Trial runs on the pilot trajectories, one row for each policy and budget, `(T,)`.

    - `coins`: names of the coin policies.
    - `budget`: budget of the run, in evaluations of the finest level.
    - `predicted`, `measured`: the RMS coin error that the linear model predicts, and the measured one.
    - `uncertainty`: relative standard error of `measured`, from the differences between pilots.
    - `alignment`: for deterministic policies, the cosine of the angle between the coin error and the discretisation
        error, over all pilots and components; 0 for random policies, whose error has either sign equally often. `None`
        if it was not measured.
    """

    coins: tuple[str, ...]
    budget: Float[np.ndarray, " trials"]
    predicted: Float[np.ndarray, " trials"]
    measured: Float[np.ndarray, " trials"]
    uncertainty: Float[np.ndarray, " trials"]
    alignment: Float[np.ndarray, " trials"] | None = None

    @classmethod
    def none(cls) -> "Trials":
        """A record without trial runs."""
        return cls(
            coins=(), **{name: np.zeros(0) for name in ("budget", "predicted", "measured", "uncertainty")}
        )

    def corrected(
        self, coins: str, budget: float | int, linear: float, uncertainty: float
    ) -> tuple[float, float]:
        """The coin error at this budget and its relative standard error: those of the linear model, corrected by the
        trial runs of this policy, if there are any.

        The squared error of a trial in excess of the linear model's is attributed to second-order terms. These depend
        on the length of the windows (the budget), but not on how far the linear parts cancel; therefore they are added.
        If the error of a trial is smaller than predicted, the prediction is multiplied by their ratio. Both corrections
        are interpolated between budgets on logarithmic axes and constant outside.
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
        """The error of coins and steps together, `sqrt(a**2 + b**2 + 2 c a b)`. Here `c` is the larger alignment of the
        two trials with the nearest budgets, and at least 0: a prediction does not rely on errors that cancel, because
        the sign of the alignment depends on more than the budget."""
        mine = self._rows(coins)
        alignment = 0.0
        if mine and self.alignment is not None:
            above = int(np.searchsorted(self.budget[mine], budget))
            alignment = max(0.0, *self.alignment[mine][max(above - 1, 0) : above + 1].tolist())
        return float(np.sqrt(coin_error**2 + discretisation**2 + 2 * alignment * coin_error * discretisation))

    def _rows(self, coins: str) -> list[int]:
        """The rows of a policy, by increasing budget."""
        mine = [i for i, name in enumerate(self.coins) if name == coins]
        return sorted(mine, key=lambda i: self.budget[i])
