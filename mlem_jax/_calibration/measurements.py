"""What was measured on pilot trajectories, as arrays. Everything a planner knows of a hierarchy of levels is here."""

import dataclasses

import numpy as np
from jaxtyping import ArrayLike, Float, Int

from .._solver import AbstractMethod, EulerMaruyama


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Measurements:
    """Levels measured on `P` pilot trajectories of `N` steps: `K` levels, cheapest first, `R` random directions.

    All errors are root mean squares over trajectories and components of the state, in the state's units.

    - `ts`: the times, `(N + 1,)`, in the order of the solve.
    - `increment_rms`: RMS of `D_k = f^k - f^{k-1}` at the start of each step, `(N, K)`.
    - `effects`: `J D_k` in random directions, `(N, K, P, R)`, with `J` the derivative of the end state with
        respect to the state after a step: by how much the increment `D_k` moves the end state. Mean squares over
        the last axes are mean squares over the components of `J D_k`.
    - `costs`: of one evaluation of each level, in evaluations of the finest one, `(K,)`.
    - `seconds`: wall-clock time of one evaluation of each level on `batch` trajectories on `device`, `(K,)`.
    - `single_steps`, `single_error`: step counts `(S,)`, and the error of each level alone with that many steps
        against an accurate solution of the finest level, `(K, S)`.
    - `single_uncertainty`: the relative standard error of `single_error`, from the differences between pilots,
        `(K, S)`.
    - `levels_id`, `state_id`: which levels and which shape of state these are.
    - `finest_error`: the finest level's own error, if the user knows it.
    - `start_share`: what share of the initial states is left in the finest level's end states: the slope of a
        regression through zero over pilots and components. `None` if it was not measured.
    - `method`: of the steps of single levels and trial runs.
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
        """How many levels were measured."""
        return len(self.costs)

    @property
    def num_steps(self) -> int:
        """Steps of the pilot trajectories, the finest grid that a plan can use."""
        return len(self.ts) - 1

    @property
    def num_pilots(self) -> int:
        """How many trajectories were measured."""
        return self.effects.shape[2]

    @property
    def effect_rms(self) -> Float[np.ndarray, "steps levels"]:
        """RMS of `J D_k` at the start of each step, `(N, K)`."""
        return np.sqrt(np.mean(self.effects.astype(float) ** 2, axis=(2, 3)))

    @property
    def mass(self) -> Float[np.ndarray, " levels"]:
        """How far each level's increment could move the end state if all its effects pointed one way:
        `sum_n h_n effect_k(t_n)`, `(K,)`."""
        return np.abs(np.diff(self.ts)) @ self.effect_rms

    def in_seconds(self) -> "Measurements":
        """The same with wall-clock time as the levels' cost."""
        return dataclasses.replace(self, costs=self.seconds / self.seconds[-1])

    def single_level_error(self, level: int, steps: ArrayLike) -> Float[np.ndarray, "..."]:
        """Error of one level alone with these numbers of steps, interpolated between the measured ones on logarithmic
        axes. With more steps than measured the finest level's error falls with the order of the method and the others'
        stays, being their distance to the finest level; with fewer it is unknown, hence infinite."""
        x = np.log(self.single_steps)
        y = np.log(np.clip(np.nan_to_num(self.single_error[level], nan=np.inf, posinf=np.inf), 1e-30, 1e30))
        wanted = np.log(np.asarray(steps, float))
        found = np.interp(wanted, x, y)
        if level == self.num_levels - 1:
            slope = np.clip((y[-1] - y[-2]) / (x[-1] - x[-2]), -float(self.method.order), 0.0)
            found = found + slope * np.maximum(wanted - x[-1], 0.0)
        return np.where(wanted < x[0] - 1e-9, np.inf, np.exp(found))
