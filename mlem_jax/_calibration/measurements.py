"""The record of the measurements on pilot trajectories, from which plans are made."""

import dataclasses

import numpy as np
from jaxtyping import ArrayLike, Float, Int

from .._solver import AbstractMethod, EulerMaruyama

# Errors are clipped to this range before their logarithm is taken: a solve may diverge, or reproduce the reference.
_SMALLEST_ERROR, _LARGEST_ERROR = 1e-30, 1e30
# Logarithms of equal numbers of steps may differ by rounding.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Measurements:
    """Levels measured on `P` pilot trajectories of `N` steps: `K` levels, cheapest first, `R` random directions.

    All errors are root mean squares over trajectories and components of the state, in the state's units.

    - `ts`: the times, `(N + 1,)`, in the order of the solve.
    - `increment_rms`: RMS of the increment `D_k = f^k - f^{k-1}` at the start of each step, `(N, K)`.
    - `effects`: the effects `J D_k` of the increments on the end state, projected on random directions, `(N, K, P, R)`.
        `J` is the derivative of the end state with respect to the state after a step. Mean squares over the last axes
        are mean squares over the components of `J D_k`.
    - `costs`: cost of one evaluation of each level, in evaluations of the finest one, `(K,)`.
    - `seconds`: wall-clock seconds of one evaluation of each level on `batch` trajectories on `device`, `(K,)`.
    - `single_steps`, `single_error`: numbers of steps, `(S,)`, and the error of each level alone with these numbers of
        steps, against an accurate solution of the finest level, `(K, S)`.
    - `single_uncertainty`: relative standard error of `single_error`, from the differences between pilots, `(K, S)`.
    - `levels_id`, `state_id`: identify the levels and the shapes of the state.
    - `finest_error`: the error of the finest level itself, if the user knows it.
    - `start_share`: the slope of a regression through zero of the finest level's end states on the initial states, over
        pilots and components. `None` if it was not measured.
    - `method`: how steps are taken in the runs of single levels and in trial runs.
    """

    ts: Float[np.ndarray, " times"]
    increment_rms: Float[np.ndarray, "steps levels"]
    effects: Float[np.ndarray, "steps levels pilots probes"]
    costs: Float[np.ndarray, " levels"]
    seconds: Float[np.ndarray, " levels"]
    single_steps: Int[np.ndarray, " counts"]
    single_error: Float[np.ndarray, "levels counts"]
    single_uncertainty: Float[np.ndarray, "levels counts"]
    batch: int
    device: str
    levels_id: tuple[str, ...]
    state_id: str
    finest_error: float | None = None
    start_share: float | None = None
    method: AbstractMethod = EulerMaruyama()  # noqa: RUF009 (immutable)

    @property
    def num_levels(self) -> int:
        """Number of measured levels."""
        return len(self.costs)

    @property
    def num_steps(self) -> int:
        """Number of steps of the pilot trajectories, whose grid is the finest that a plan can use."""
        return len(self.ts) - 1

    @property
    def num_pilots(self) -> int:
        """Number of pilot trajectories."""
        return self.effects.shape[2]

    @property
    def effect_rms(self) -> Float[np.ndarray, "steps levels"]:
        """RMS of `J D_k` at the start of each step, `(N, K)`."""
        return np.sqrt(np.mean(self.effects.astype(float) ** 2, axis=(2, 3)))

    @property
    def mass(self) -> Float[np.ndarray, " levels"]:
        """The distance by which each level's increment would move the end state if its effects at all times had the
        same direction: `sum_n h_n effect_k(t_n)`, `(K,)`."""
        return np.abs(np.diff(self.ts)) @ self.effect_rms

    def in_seconds(self) -> "Measurements":
        """The same measurements with wall-clock seconds as the levels' costs."""
        return dataclasses.replace(self, costs=self.seconds / self.seconds[-1])

    def single_level_error(self, level: int, steps: ArrayLike) -> Float[np.ndarray, "..."]:
        """The error of a single level with these numbers of steps, interpolated between the measured ones on
        logarithmic axes. Beyond the largest measured number, the error of the finest level decreases as between the
        last two measured numbers, but at most with the order of the method; that of another level, its distance to the
        finest level, is constant. Below the smallest measured number the error is unknown and infinity is returned."""
        x = np.log(self.single_steps)
        errors = np.nan_to_num(self.single_error[level], nan=np.inf, posinf=np.inf)
        y = np.log(np.clip(errors, _SMALLEST_ERROR, _LARGEST_ERROR))
        wanted = np.log(np.asarray(steps, float))
        found = np.interp(wanted, x, y)
        if level == self.num_levels - 1:
            slope = np.clip((y[-1] - y[-2]) / (x[-1] - x[-2]), -float(self.method.order), 0.0)
            found = found + slope * np.maximum(wanted - x[-1], 0.0)
        return np.where(wanted < x[0] - _ROUNDING, np.inf, np.exp(found))
