"""A plan made by hand: any steps on one level, without a calibration."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import diffrax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from .._custom_types import Numbers
from .._solver import AbstractMethod, EulerMaruyama
from .abstract_plan import AbstractPlan
from .files import decode_record


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class StepsPlan(AbstractPlan):
    """Steps of one method on one level. From [`mlem_jax.steps_plan`][]; what all plans offer is in
    [`mlem_jax.AbstractPlan`][]. Its error is not known, hence NaN.

    - `method`: of the steps.
    """

    kind: ClassVar[str] = "plan of steps"
    version: ClassVar[int] = 1

    method: AbstractMethod

    @property
    def deterministic(self) -> bool:
        """True: there are no coins."""
        return True

    @property
    def expected_firings(self) -> Float[np.ndarray, " levels"]:
        """One in each step, `(1,)`."""
        return np.array([len(self.ts) - 1.0])

    def solver(self, *, key: PRNGKeyArray, **settings: Any) -> diffrax.AbstractSolver:
        """The method's solver for one level, which needs neither key nor settings."""
        del key, settings
        return self.method.single_level_solver()

    def cut(self, start: float) -> "StepsPlan":
        """See [`mlem_jax.AbstractPlan`][]."""
        ts = self.ts[self._first_step(start) :]
        return dataclasses.replace(self, ts=ts, cost=float(len(ts) - 1))

    @classmethod
    def _from_file(cls, values: dict[str, Any], path: str | Path) -> "StepsPlan":
        return decode_record(cls, values, path)

    def __str__(self) -> str:
        name, level = self.method.single_level_name, self.levels[0] + 1
        return (
            f"{name} on level {level} alone, {len(self.ts) - 1} steps, made by hand: its error is not known"
        )


def steps_plan(
    ts: Numbers,
    *,
    method: AbstractMethod = EulerMaruyama(),  # noqa: B008 (immutable)
    level: int = 0,
) -> StepsPlan:
    """A plan for any grid, without a calibration and without levels.

    !!! example

        ```python
        ts = process.grid(20)
        ddim = steps_plan(ts)
        dpm_solver = steps_plan(ts, method=AdamsBashforth("log"))  # DPM-Solver-2M
        sample([predictor], shape=(32, 32, 3), n=64, plan=dpm_solver, key=key)
        ```

    **Arguments:**

    - `ts`: times of the steps, `(N + 1,)`, increasing or decreasing.
    - `method`: [`mlem_jax.EulerMaruyama`][], on the probability flow of a diffusion model DDIM, or
        [`mlem_jax.AdamsBashforth`][], with `"log"` there DPM-Solver-2M in noise prediction, of the
        order of DPM-Solver++(2M) (Lu et al. 2022) and similarly accurate.
    - `level`: index of the level that is evaluated, 0 for the cheapest or for the only one.

    Raises `ValueError` for times that are not monotone.
    """
    times = np.asarray(ts, float)
    steps = np.diff(times) if times.ndim == 1 else np.zeros(0)
    if not len(steps) or not (np.all(steps > 0) or np.all(steps < 0)):
        raise ValueError(
            f"steps_plan was given times of shape {times.shape}; an increasing or decreasing sequence is expected, for "
            "example process.grid(20)."
        )
    return StepsPlan(
        ts=times,
        levels=(level,),
        costs=np.ones(1),
        cost=float(len(steps)),
        error=float("nan"),
        relative_error_of_prediction=float("nan"),
        finest_error=None,
        advice=(),
        method=method,
    )
