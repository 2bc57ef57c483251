"""Measurements of levels along pilot trajectories, and trial runs of the multilevel method on them."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import ArrayLike, Float, PRNGKeyArray, PyTree

from .._checks import as_key
from .._coins import AbstractCoins, IndependentCoins, StratifiedCoins, SystematicCoins
from .._custom_types import Args, Y
from .._fingerprint import level_id, state_id
from .._progress import show_progress
from .._solver import AbstractMethod, EulerMaruyama
from .calibration import Calibration
from .costs import check_costs, relative_costs, time_levels
from .fit_steps import fit_steps
from .inputs import check_finite, make_pilots
from .kept_parts import kept_parts, KeptParts
from .measurements import Measurements
from .pilots import LevelSubsetTerms, Pilots, ReportProgress
from .single_runs import run_single_levels, SingleRuns, strides
from .sweep import sweep
from .trial_runs import run_trials, TRIAL_BUDGETS

_TRIED = (IndependentCoins(), StratifiedCoins(), SystematicCoins(), SystematicCoins(offset=0.5))
# For the progress bar only: the sweep along a batch takes about as long as four runs of a single level.
_SWEEP_WORK = 4
# Fields of `Measurements` that do not depend on the method.
_OF_THE_LEVELS = ("increment_rms", "effects", "costs", "seconds")


def calibrate(
    terms: PyTree | Callable[[PRNGKeyArray], PyTree],
    ts: ArrayLike,
    y0s: Y,
    args: Args = None,
    *,
    labels: PyTree = None,
    key: PRNGKeyArray,
    method: AbstractMethod = EulerMaruyama(),  # noqa: B008 (immutable)
    costs: Sequence[float] | Literal["flops", "seconds"] | None = None,
    finest_error: float | None = None,
    probes: int = 2,
    sensitivity_level: int = -2,
    batch_size: int = 32,
    trials: Sequence[AbstractCoins] = _TRIED,
    fit: bool = False,
    like: Calibration | None = None,
    keep_in: str | Path | None = None,
    progress: bool = True,
) -> Calibration:
    """Measures, along trajectories of the finest level, the sizes of the levels' increments, their effects on the end
    state and the levels' costs; then tries the multilevel method on the same trajectories.

    The effects need the derivative of the end state with respect to earlier states. It is approximated by the
    derivative of the flow of a cheaper level (`sensitivity_level`) along the finest level's trajectory, applied to
    random directions in one backward sweep. The trial runs compare the errors that the effects predict with measured
    errors.

    **Arguments:**

    - `terms`: as for [`mlem_jax.MLEM`][]; or a function of a key that returns them, which gives each pilot trajectory
        its own noise (otherwise all have the same).
    - `ts`: times of the pilots' Euler steps, `(N + 1,)`, the finest grid that a plan can use. `N` must be a multiple of
        4 and should have many factors of 2, since plans may use every second, fourth, ... of these times.
    - `y0s`: initial states of the `P` pilot trajectories, with a leading axis; dtypes as for `diffeqsolve`. The errors
        of a plan are averages over such states; with `P = 32` their standard error is about 10%.
    - `args`: the `args` of the levels for all pilots, any PyTree; or
    - `labels`: the `args` of the levels for each pilot, arrays with a leading axis of `P`.
    - `key`: for the random directions, the coins of the trial runs, and noise; keyword-only.
    - `method`: how plans take steps: [`mlem_jax.EulerMaruyama`][] for [`mlem_jax.MLEM`][], or
        [`mlem_jax.AdamsBashforth`][] for [`mlem_jax.MLAB2`][].
    - `costs`: cost of one evaluation of each level, in any unit; or `"flops"`, the FLOPs of the compiled level; or
        `"seconds"`, the wall-clock seconds for a batch. By default the term's costs, or the FLOPs if it has none.
    - `finest_error`: the RMS error of the finest level itself at the end, if known; it is only reported.
    - `probes`: number of random directions per trajectory.
    - `sensitivity_level`: index of the level whose derivative is used; by default the second finest.
    - `batch_size`: number of pilot trajectories in a batch; it bounds the memory.
    - `trials`: coin policies for trial runs on the pilots. For other policies, plans use the linear model alone.
    - `fit`: whether to fit steps of different costs too, on the same pilots, by [`mlem_jax.fit_steps`][]; plans then
        choose among them as well. It needs at least 8 pilots and takes longer than the measurement. To use other
        settings call `fit_steps` and [`mlem_jax.Calibration.with_fitted`][].
    - `like`: a calibration of the same levels on the same pilots for another method, whose increments, effects and
        costs are taken over; what depends on the method is measured. Pass the same `ts`, `y0s` and `key`.
    - `keep_in`: a folder in which finished parts are kept. The same call after an interruption continues from them and
        ends with the same numbers. Delete the folder when the calibration is saved.
    - `progress`: whether to show a progress bar.

    The measurement takes about `5 N` evaluations of the finest level per pilot.

    For a term with a single level only its errors are measured; a plan then chooses its number of steps.

    Raises `ValueError` for terms without a MultilevelTerm, for labels beside `args` or of another number than the
    pilots, for invalid costs, for times that are not monotone, unless `N` is a multiple of 4, and for a calibration
    `like` that is of other levels, times, states or another number of pilots.
    """
    if not isinstance(method, AbstractMethod):
        raise ValueError(
            f"calibrate was given method={method!r}; an object is expected, mlem_jax.EulerMaruyama() or "
            'mlem_jax.AdamsBashforth("log").'
        )
    key = as_key("calibrate", key)
    keys = jr.split(key, 3)
    pilots = make_pilots(terms, ts, y0s, args, labels, keys[0], batch_size)
    num_levels = len(pilots.term.levels)
    priced = check_costs(pilots.term, costs)
    if like is not None:
        _check_like(like, pilots)
    runs = num_levels * len(strides(len(pilots.ts) - 1))
    work = len(pilots.batches) * (_SWEEP_WORK * (like is None) + runs) + len(trials) * len(TRIAL_BUDGETS)
    problem = (terms, ts, y0s, args, labels, key)
    settings = (method, costs, probes, sensitivity_level, batch_size, trials)
    with show_progress("calibrating", total=work, shown=progress) as display:
        kept = kept_parts("calibration", keep_in, (problem, settings, like is None), display.restart)

        def report_progress(what: str, count: int) -> None:
            display.advance(count, what)

        if like is None:
            given = (sensitivity_level, probes, keys[1])
            levels = _measure_levels(pilots, priced, *given, kept, report_progress)
        else:
            levels = {name: getattr(like.measurements, name) for name in _OF_THE_LEVELS}
        single = run_single_levels(pilots, method, kept, report_progress)
        measured = _record(pilots, levels, single, method, finest_error)
        tried = run_trials(measured, trials, pilots, single, keys[2], kept, report_progress)
    found = Calibration(measured, tried)
    if not fit:
        return found
    shared: dict[str, Any] = dict(costs=costs, batch_size=batch_size, keep_in=keep_in, progress=progress)
    shared |= dict(labels=labels, key=jr.fold_in(key, 3), time_variable=method.time_variable)
    return found.with_fitted(fit_steps(terms, ts, y0s, args, **shared))


def _record(
    pilots: Pilots,
    levels: dict[str, np.ndarray],
    single: SingleRuns,
    method: AbstractMethod,
    finest_error: float | None,
) -> Measurements:
    """The record of all measurements."""
    states, _ = pilots.batches[0]
    return Measurements(
        ts=np.asarray(pilots.ts, float),
        **levels,
        single_steps=single.steps,
        single_error=single.error,
        single_uncertainty=single.uncertainty,
        batch=len(jtu.tree_leaves(states)[0]),
        device=jax.devices()[0].device_kind,
        levels_id=tuple(level_id(level) for level in pilots.term.levels),
        state_id=state_id(jtu.tree_map(lambda leaf: leaf[0], states)),
        finest_error=finest_error,
        start_share=single.start_share,
        method=method,
    )


def _measure_levels(
    pilots: Pilots,
    priced: Float[np.ndarray, " levels"] | Literal["flops", "seconds"],
    sensitivity_level: int,
    probes: int,
    key: PRNGKeyArray,
    kept: KeptParts,
    report_progress: ReportProgress,
) -> dict[str, np.ndarray]:
    """What does not depend on the method: the fields `_OF_THE_LEVELS` of `Measurements`."""
    report_progress("timing the levels", 0)
    batch = pilots.batches[0]
    y0, inputs = jtu.tree_map(lambda leaf: leaf[0], batch)
    (seconds,) = kept.arrays("seconds", lambda: [time_levels(pilots.term, pilots.ts[0], *batch, pilots.args)])
    costs = relative_costs(pilots.term, priced, seconds, pilots.ts[0], y0, inputs.args(pilots.args))
    index = sensitivity_level % len(pilots.term.levels)
    sizes, effects = _sweep(pilots, index, probes, key, kept, report_progress)
    return {
        "increment_rms": np.sqrt(np.mean(sizes, axis=2)),
        "effects": np.asarray(effects, np.float32),
        "costs": costs,
        "seconds": seconds,
    }


def _check_like(like: Calibration, pilots: Pilots) -> None:
    """Raises `ValueError` unless a calibration is of these levels and may be of these pilots."""
    measured = like.measurements
    y0 = jtu.tree_map(lambda leaf: leaf[0], pilots.batches[0][0])
    count = sum(len(inputs.noise) for _, inputs in pilots.batches)
    differ = [
        name
        for name, same in (
            ("levels", measured.levels_id == tuple(level_id(level) for level in pilots.term.levels)),
            ("states", measured.state_id == state_id(y0)),
            ("times", np.array_equal(measured.ts, np.asarray(pilots.ts, float))),
            ("pilots", measured.num_pilots == count),
        )
        if not same
    ]
    if differ:
        raise ValueError(
            f"calibrate was given like=..., a calibration of other {', '.join(differ)}. Pass the same terms, ts and "
            "y0s as to that one, or leave it out."
        )


def _sweep(
    pilots: Pilots,
    sensitivity_level: int,
    probes: int,
    key: PRNGKeyArray,
    kept: KeptParts,
    report_progress: ReportProgress,
) -> tuple[Float[np.ndarray, "steps levels pilots"], Float[np.ndarray, "steps levels pilots probes"]]:
    """Mean squares and effects of the increments on all pilots."""
    # Terms with this level only, so that the derivatives of the other levels are not compiled.
    cheap = LevelSubsetTerms(pilots.make_terms, (sensitivity_level,))
    batch_size = len(pilots.batches[0][1].noise)
    keys = jr.split(key, sum(len(inputs.noise) for _, inputs in pilots.batches))
    found = []
    report_progress("increments along trajectories", 0)
    for i, (ys, inputs) in enumerate(pilots.batches):
        mine = keys[i * batch_size : (i + 1) * batch_size]
        one = functools.partial(
            sweep, pilots.make_terms, cheap, pilots.ts, ys, pilots.args, probes, inputs, mine
        )
        found.append(kept.arrays(f"increments-{i + 1}", one))
        report_progress("increments along trajectories", _SWEEP_WORK)
    sizes, effects = (np.concatenate(parts, axis=2) for parts in zip(*found, strict=True))
    check_finite(effects, pilots.ts)
    return sizes, effects
