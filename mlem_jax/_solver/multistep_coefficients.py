"""The coefficients of linear multistep methods at several levels, and the classical ones."""

from collections.abc import Sequence

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._custom_types import Numbers, TimeVariable
from .mlab2 import check_time_variable


class MultistepCoefficients(eqx.Module):
    r"""The coefficients of [`mlem_jax.LinearMultistep`][] for `N` steps, `K` levels, `M` drifts and `L` increments.

    Each is a multiple of a drift, so it has the unit of time (and its sign where time decreases). Arrays are NumPy's or
    JAX's; all but `ts`, `looks` and `repeats` may be differentiated.

    - `ts`: times of the steps, `(N + 1,)`, in the order of the solve.
    - `drifts`: multiples of the base's last `M` drifts, `(N, M)`, newest first.
    - `increments`: multiples of the last `L` increments found of each higher level, `(N, K - 1, L)`, newest first.
    - `looks`: whether each higher level is evaluated at the start of the step, `(N, K - 1)`.
    - `corrections`: by which multiples of the last `L` increments, the one just found included, the state is moved at
        a look, `(N, K - 1, L)`.
    - `repeats`: whether the base is evaluated again after the state has been moved, `(N,)`.

    Raises `ValueError` for arrays whose shapes do not fit together, or a grid that is not monotone.
    """

    ts: Float[Array | np.ndarray, " steps_plus_1"]
    drifts: Float[Array | np.ndarray, "steps drifts"]
    increments: Float[Array | np.ndarray, "steps levels_above held"]
    looks: Bool[Array | np.ndarray, "steps levels_above"]
    corrections: Float[Array | np.ndarray, "steps levels_above held"]
    repeats: Bool[Array | np.ndarray, " steps"]

    def __check_init__(self) -> None:
        steps, above, held = np.shape(self.increments)
        shapes = {
            "ts": (steps + 1,),
            "drifts": (steps, np.shape(self.drifts)[-1]),
            "looks": (steps, above),
            "corrections": (steps, above, held),
            "repeats": (steps,),
        }
        for name, shape in shapes.items():
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(
                    f"MultistepCoefficients was given {name} of shape {np.shape(getattr(self, name))}; {shape} is "
                    f"expected beside increments of shape {(steps, above, held)}."
                )

    @property
    def num_levels(self) -> int:
        """`K`, base included."""
        return np.shape(self.looks)[1] + 1

    @property
    def evaluations(self) -> Int[np.ndarray, " levels"]:
        """How often each level is evaluated in a solve, `(K,)`, base first."""
        base = len(self.looks) + np.sum(np.asarray(self.repeats))
        return np.append(base, np.sum(np.asarray(self.looks), axis=0)).astype(int)

    @classmethod
    def adams_bashforth(
        cls,
        ts: Numbers,
        *,
        drifts: int = 2,
        time_variable: TimeVariable = "time",
        num_levels: int = 1,
        looks: Sequence[Sequence[int]] = (),
        held: int = 1,
        repeats: bool = False,
    ) -> "MultistepCoefficients":
        """The classical coefficients: the Adams-Bashforth method on the base, and the increment of the finest level
        that has been looked at held until the next look at it.

        The polynomial through the last drifts, in the time variable, is averaged over the step (Hairer, Norsett &
        Wanner, Solving Ordinary Differential Equations I, section III.5, for unequal steps). The first steps use the
        drifts that there are. With `time_variable="log"` and two drifts it is the base of [`mlem_jax.MLAB2`][].

        **Arguments:**

        - `ts`: times of the steps, `(N + 1,)`.
        - `drifts`: how many drifts a step uses: 1 is Euler's method.
        - `time_variable`: `"time"` or `"log"`, the logarithm of the time's absolute value.
        - `num_levels`: of the term.
        - `looks`: for each level above the base, the steps in which it is evaluated; none by default.
        - `held`: how many increments of a level are remembered; the older ones have the coefficient 0.
        - `repeats`: whether the base is evaluated again in a step with a look.

        Raises `ValueError` for a grid that is not strictly monotone, a time of 0 with `"log"`, or fewer than one
        drift or increment.
        """
        ts = np.asarray(ts, float)
        above, steps = num_levels - 1, len(ts) - 1
        if drifts < 1 or held < 1:
            raise ValueError(f"drifts={drifts} and held={held}: at least 1 is expected of each.")
        looks = looks or [()] * above
        if len(looks) != above:
            raise ValueError(
                f"looks names steps of {len(looks)} levels and there are {above} above the base."
            )
        looked = np.zeros((steps, above), bool)
        for level, chosen in enumerate(looks):
            looked[list(chosen), level] = True
        increments = np.zeros((steps, above, held))
        for n in range(steps):
            known = np.flatnonzero(looked[: n + 1].any(axis=0))
            if len(known):
                increments[n, known[-1], 0] = ts[n + 1] - ts[n]
        return cls(
            ts=ts,
            drifts=adams_bashforth_weights(ts, drifts, time_variable),
            increments=increments,
            looks=looked,
            corrections=np.zeros((steps, above, held)),
            repeats=np.logical_and(looked.any(axis=1), repeats),
        )


def adams_bashforth_weights(
    ts: Float[np.ndarray, " times"], drifts: int, time_variable: TimeVariable
) -> Float[np.ndarray, "steps drifts"]:
    """The multiples of the last drifts, newest first, of each step of a grid. Raises `ValueError`."""
    lengths = np.diff(ts)
    if ts.ndim != 1 or len(ts) < 2 or not (np.all(lengths > 0) or np.all(lengths < 0)):
        raise ValueError(
            f"A strictly increasing or decreasing grid is expected, and ts has shape {ts.shape}."
        )
    check_time_variable("MultistepCoefficients", time_variable)
    if time_variable == "log" and (np.any(ts == 0) or ts[0] * ts[-1] < 0):
        raise ValueError("time_variable='log' needs times on one side of 0, which has no logarithm.")
    places = ts if time_variable == "time" else np.log(np.abs(ts))
    weights = np.zeros((len(lengths), drifts))
    for n, length in enumerate(lengths):
        known = min(n + 1, drifts)
        # In units of the step, from its start: so the matrix of powers is well conditioned.
        nodes = (places[n - np.arange(known)] - places[n]) / (places[n + 1] - places[n])
        powers = np.arange(known)
        means = 1 / (powers + 1)
        weights[n, :known] = length * np.linalg.solve(nodes[None, :] ** powers[:, None], means)
    return weights
