"""Plans without a calibration: any steps on a single level."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import diffrax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from .._checks import check_grid
from .._custom_types import Numbers
from .._solver import AbstractMethod, EulerMaruyama
from .abstract_plan import AbstractPlan
from .files import decode_record


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class StepsPlan(AbstractPlan):
    """A plan of [`mlem_jax.steps_plan`][]: steps of one method on one level. The attributes and methods of all plans
    are described at [`mlem_jax.AbstractPlan`][]. The error is unknown and NaN.

    - `method`: how steps are taken.
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
        """The method's solver for a single level. Key and settings are ignored."""
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
        return f"{name} on level {level} alone, {len(self.ts) - 1} steps, without a calibration: the error is unknown"


def steps_plan(
    ts: Numbers,
    *,
    method: AbstractMethod = EulerMaruyama(),  # noqa: B008 (immutable)
    level: int = 0,
) -> StepsPlan:
    """A plan for any grid and a single level, without a calibration.

    !!! example

        ```python
        ts = process.grid(20)
        ddim = steps_plan(ts)
        dpm_solver = steps_plan(ts, method=AdamsBashforth("log"))  # DPM-Solver-2M
        sample([predictor], shape=(32, 32, 3), n=64, plan=dpm_solver, key=key)
        ```

    **Arguments:**

    - `ts`: times of the steps, `(N + 1,)`, increasing or decreasing.
    - `method`: how steps are taken. On the probability flow of a diffusion model [`mlem_jax.EulerMaruyama`][] is DDIM,
        and [`mlem_jax.AdamsBashforth`][] with `"log"` is DPM-Solver-2M in noise prediction, which has the order of
        DPM-Solver++(2M) (Lu et al. 2022) and similar accuracy.
    - `level`: index of the level that is evaluated, 0 for the cheapest or the only one.

    Raises `ValueError` for times that are not monotone.
    """
    check_grid("steps_plan", ts)
    times = np.asarray(ts, float)
    return StepsPlan(
        ts=times,
        levels=(level,),
        costs=np.ones(1),
        cost=float(len(times) - 1),
        error=float("nan"),
        relative_error_of_prediction=float("nan"),
        finest_error=None,
        advice=(),
        method=method,
    )
