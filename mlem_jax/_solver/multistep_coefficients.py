"""The coefficients of linear multistep methods at several levels, and the classical ones."""

from collections.abc import Sequence

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_grid
from .._custom_types import Numbers, TimeVariable
from .mlab2 import check_time_variable


class MultistepCoefficients(eqx.Module):
    r"""The coefficients of [`mlem_jax.LinearMultistep`][] for `N` steps, `K` levels, `M` drifts and `L` increments.

    Each coefficient multiplies a drift, so it has the unit of time (and is negative if time decreases). Arrays are
    NumPy's or JAX's; all but `ts`, `evaluated` and `repeats` can be differentiated.

    - `ts`: times of the steps, `(N + 1,)`, in the order of the solve.
    - `drifts`: coefficients of the base's last `M` drifts, `(N, M)`, newest first.
    - `increments`: coefficients of the last `L` increments of each higher level, `(N, K - 1, L)`, newest first.
    - `evaluated`: whether each higher level is evaluated at the start of the step, `(N, K - 1)`.
    - `corrections`: coefficients of the last `L` increments, including the new one, by which the state is moved at the
        start of a step in which a higher level is evaluated, `(N, K - 1, L)`.
    - `repeats`: whether the base is evaluated again after that move, `(N,)`.

    Raises `ValueError` for arrays whose shapes do not fit together, or a grid that is not monotone.
    """

    ts: Float[Array | np.ndarray, " steps_plus_1"]
    drifts: Float[Array | np.ndarray, "steps drifts"]
    increments: Float[Array | np.ndarray, "steps levels_above held"]
    evaluated: Bool[Array | np.ndarray, "steps levels_above"]
    corrections: Float[Array | np.ndarray, "steps levels_above held"]
    repeats: Bool[Array | np.ndarray, " steps"]

    def __check_init__(self) -> None:
        steps, above, held = np.shape(self.increments)
        shapes = {
            "ts": (steps + 1,),
            "drifts": (steps, np.shape(self.drifts)[-1]),
            "evaluated": (steps, above),
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
        return np.shape(self.evaluated)[1] + 1

    @property
    def evaluations(self) -> Int[np.ndarray, " levels"]:
        """The number of evaluations of each level in a solve, `(K,)`, base first."""
        base = len(self.evaluated) + np.sum(np.asarray(self.repeats))
        return np.append(base, np.sum(np.asarray(self.evaluated), axis=0)).astype(int)

    @classmethod
    def adams_bashforth(
        cls,
        ts: Numbers,
        *,
        drifts: int = 2,
        time_variable: TimeVariable = "time",
        num_levels: int = 1,
        evaluated: Sequence[Sequence[int]] = (),
        held: int = 1,
        repeats: bool = False,
    ) -> "MultistepCoefficients":
        """The classical coefficients: the Adams-Bashforth method on the base, plus the last increment of the finest
        level that has been evaluated, held until its next evaluation.

        The polynomial through the last drifts in the time variable is averaged over the step (Hairer, Nørsett & Wanner,
        Solving Ordinary Differential Equations I, section III.5, for unequal steps). The first steps use all earlier
        drifts. With `time_variable="log"` and two drifts this is the base of [`mlem_jax.MLAB2`][].

        **Arguments:**

        - `ts`: times of the steps, `(N + 1,)`.
        - `drifts`: number of drifts in a step; 1 is Euler's method.
        - `time_variable`: `"time"` or `"log"`, the logarithm of the time's absolute value.
        - `num_levels`: number of levels of the term.
        - `evaluated`: for each level above the base, the steps in which it is evaluated; none by default.
        - `held`: number of increments of a level that are stored; all but the newest have the coefficient 0.
        - `repeats`: whether the base is evaluated again in the steps in which a higher level is evaluated.

        Raises `ValueError` for a grid that is not strictly monotone, a time of 0 with `"log"`, or fewer than one
        drift or increment.
        """
        ts = np.asarray(ts, float)
        above, steps = num_levels - 1, len(ts) - 1
        if drifts < 1 or held < 1:
            raise ValueError(f"drifts={drifts} and held={held}: at least 1 is expected of each.")
        evaluated = list(evaluated) or [()] * above
        if len(evaluated) != above:
            raise ValueError(
                f"evaluated has the steps of {len(evaluated)} levels; those of the {above} levels above the base are "
                "expected."
            )
        mask = np.zeros((steps, above), bool)
        for level, chosen in enumerate(evaluated):
            mask[list(chosen), level] = True
        increments = np.zeros((steps, above, held))
        for n in range(steps):
            known = np.flatnonzero(mask[: n + 1].any(axis=0))
            if len(known):
                increments[n, known[-1], 0] = ts[n + 1] - ts[n]
        return cls(
            ts=ts,
            drifts=adams_bashforth_weights(ts, drifts, time_variable),
            increments=increments,
            evaluated=mask,
            corrections=np.zeros((steps, above, held)),
            repeats=np.logical_and(mask.any(axis=1), repeats),
        )


def adams_bashforth_weights(
    ts: Float[np.ndarray, " times"], drifts: int, time_variable: TimeVariable
) -> Float[np.ndarray, "steps drifts"]:
    """The coefficients of the last drifts, newest first, for each step of a grid. Raises `ValueError` for a grid that
    is not monotone, another time variable, or a time of 0 with `"log"`."""
    check_grid("MultistepCoefficients", ts)
    lengths = np.diff(ts)
    check_time_variable("MultistepCoefficients", time_variable)
    if time_variable == "log" and (np.any(ts == 0) or ts[0] * ts[-1] < 0):
        raise ValueError(
            "time_variable='log' needs times on one side of 0, where the logarithm has no value."
        )
    places = ts if time_variable == "time" else np.log(np.abs(ts))
    weights = np.zeros((len(lengths), drifts))
    for n, length in enumerate(lengths):
        known = min(n + 1, drifts)
        # Relative to the start of the step and in units of its length, so that the matrix of powers is well
        # conditioned.
        nodes = (places[n - np.arange(known)] - places[n]) / (places[n + 1] - places[n])
        powers = np.arange(known)
        means = 1 / (powers + 1)
        weights[n, :known] = length * np.linalg.solve(nodes[None, :] ** powers[:, None], means)
    return weights
