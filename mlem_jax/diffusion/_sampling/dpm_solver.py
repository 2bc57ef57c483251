"""DPM-Solver++(2M) in the library's terms: a linear multistep method, like any that steps on linear combinations of
drifts."""

import numpy as np
from jaxtyping import Float

from ..._custom_types import Numbers
from ..._solver import MultistepCoefficients


def dpm_solver(ts: Numbers) -> MultistepCoefficients:
    r"""The coefficients of DPM-Solver++(2M) (Lu et al. 2022) for the probability flow of one network.

    The method extrapolates the clean image `x - s f` of the last two steps. Their difference contains the state's
    change, hence all earlier drifts, of which this table has as many as there are steps.

    !!! example

        ```python
        ts = process.grid(10)
        solver = ml.LinearMultistep(dpm_solver(ts))
        diffrax.diffeqsolve(term, solver, ts[0], ts[-1], None, y0, stepsize_controller=diffrax.StepTo(ts))
        ```

    **Arguments:**

    - `ts`: decreasing noise levels `s` of the steps, `(N + 1,)`, positive.

    Raises `ValueError` for other times.
    """
    s = np.asarray(ts, float)
    if s.ndim != 1 or len(s) < 2 or np.any(np.diff(s) >= 0) or s[-1] <= 0:
        raise ValueError(
            f"dpm_solver was given times of shape {s.shape}; decreasing positive numbers are expected, for example "
            "process.grid(10)."
        )
    steps = len(s) - 1
    # Of each drift, oldest first, in the state's change over the last step.
    change: Float[np.ndarray, " drifts"] = np.zeros(steps)
    drifts = np.zeros((steps, steps))
    for n in range(steps):
        before, ratio = change, s[n + 1] / s[n]
        change = np.zeros(steps)
        change[n] = -(1 - ratio) * s[n]
        if n:
            extrapolated = 0.5 * np.log(ratio) / np.log(s[n] / s[n - 1]) * (1 - ratio)
            clean = before.copy()
            clean[n] -= s[n]
            clean[n - 1] += s[n - 1]
            change += extrapolated * clean
        drifts[n, : n + 1] = change[: n + 1][::-1]
    return MultistepCoefficients(
        ts=s,
        drifts=drifts,
        increments=np.zeros((steps, 0, 1)),
        evaluated=np.zeros((steps, 0), bool),
        corrections=np.zeros((steps, 0, 1)),
        repeats=np.zeros(steps, bool),
    )
