"""From terms and pilots to a catalogue of fitted steps, in one call."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import ArrayLike, Float, PRNGKeyArray, PyTree

from .._checks import as_key, check_grid
from .._custom_types import Args, TimeVariable, Y
from .._fingerprint import level_id, state_id
from .._progress import show_progress
from .._term import as_terms_of_key, find_multilevel_term
from .costs import check_costs, relative_costs, time_levels
from .fit_catalogue import FittedSteps
from .fit_entries import catalogue_entries, Entry, worth_keeping
from .fit_pilots import FitPilots
from .fit_search import search_schedules, SINGLE, units_of_search, worth_fitting
from .inputs import check_labels
from .kept_parts import kept_parts, KeptParts
from .pilots import PilotInputs

_FEWEST_PILOTS, _FEWEST_STEPS = 8, 8
# Steps are chosen among at most this number of times. It is the number of steps with which a second-order reference of
# the shipped diffusion models is accurate.
_MOST_TIMES = 128


def fit_steps(
    terms: PyTree | Callable[[PRNGKeyArray], PyTree],
    ts: ArrayLike,
    y0s: Y,
    args: Args = None,
    *,
    labels: PyTree = None,
    key: PRNGKeyArray,
    time_variable: TimeVariable = "time",
    costs: Sequence[float] | Literal["flops", "seconds"] | None = None,
    most: float | int = 32.0,
    distribution: float | int = 0.0,
    batch_size: int = 32,
    keep_in: str | Path | None = None,
    progress: bool = True,
) -> FittedSteps:
    """Fits the steps of solves of different costs, for a ladder of levels or for a single level: the times of the
    steps, the levels that are evaluated in each step, and the coefficients of their drifts.

    The coefficients of a step minimise the distance of the pilots to the reference trajectory at the end of the step.
    Each pilot has been rolled out with the coefficients of the earlier steps. The fit is a least-squares problem with
    a ridge towards the classical coefficients, in which pilots far from the reference have a smaller weight. Held-out
    pilots choose the ridge and the number of drifts and increments. Afterwards a few Gauss-Newton steps reduce the
    error at the end in all coefficients together, as long as the error of held-out pilots decreases. No network is
    trained. The times of the steps and the evaluations of higher levels are found by a search with such roll-outs on
    the first 40 pilots. The highest level that is evaluated need not be the finest one, so the catalogue also has
    steps for less than one evaluation of the finest level. Related methods for a single network are S4S, LD3, BNS and
    generalised linear multistep solvers.

    !!! example

        ```python
        steps = ml.fit_steps(term, ts, y0s, key=key)
        print(steps)
        plan = steps.plan(budget=4)
        sol = diffrax.diffeqsolve(
            plan.terms(term), plan.solver(), plan.ts[0], plan.ts[-1], None, y0,
            stepsize_controller=diffrax.StepTo(plan.grid),
        )
        ```

    **Arguments:**

    - `terms`: a [`mlem_jax.MultilevelTerm`][], or a `MultiTerm` of it and terms of additive noise; or a function of a
        key that returns them, which gives each pilot its own noise.
    - `ts`: times of the reference solution, `(N + 1,)`. A second-order solution of the finest level with these steps
        must be accurate. Steps are chosen among at most 128 of these times, evenly spaced in the sequence.
    - `y0s`: initial states of the pilots, with a leading axis of `P`, at least 8. For images 64 to 128 pilots suffice,
        for small states 32.
    - `args`, `labels`: as for [`mlem_jax.calibrate`][].
    - `key`: for the noise; keyword-only.
    - `time_variable`: that of the classical coefficients, `"time"` or `"log"`; use `"log"` for diffusion models.
    - `costs`: cost of one evaluation of each level, as for [`mlem_jax.calibrate`][].
    - `most`: the largest cost of a catalogue entry, in evaluations of the finest level.
    - `distribution`: the weight in the objective, from 0 to below 1, of the distance between the distributions of the
        pilots' states and of the reference (means and standard deviations). The remaining weight is that of the
        distance of each pilot to its own reference. For images 0.9 is a good value: a fit to the trajectories alone
        reduces standard deviations, which makes images with few evaluations blurred. Plans for a budget are then
        chosen by this objective. Steps of the finest level alone whose error would increase by more than 5% are fitted
        to the trajectories alone.
    - `batch_size`: about the number of pilots evaluated together; it bounds the memory.
    - `keep_in`: a folder in which finished parts are kept, as for [`mlem_jax.calibrate`][].
    - `progress`: whether to show a progress bar.

    Raises `ValueError` for terms without a `MultilevelTerm`, fewer than 8 pilots, times that are not monotone, a `most`
    below 2, a `distribution` outside `[0, 1)`, labels beside `args` or of another number than the pilots, and invalid
    costs.
    """
    key = as_key("fit_steps", key)
    make_terms = as_terms_of_key(terms)
    example = make_terms(key)
    _, term = find_multilevel_term(example, "fit_steps")
    check_grid("fit_steps", ts, fewest=_FEWEST_STEPS)
    fine = np.asarray(ts, float)
    count = jtu.tree_leaves(y0s)[0].shape[0]
    _check_settings(count, most, distribution)
    check_labels(labels, args, count)
    labels = jtu.tree_map(jnp.asarray, labels)
    y0 = jtu.tree_map(lambda leaf: leaf[0], y0s)
    own = PilotInputs(jr.split(key, count), labels)
    first = own.args(args) if labels is None else jtu.tree_map(lambda x: x[0], labels)
    term.check_levels(fine[0], y0, first)
    stride = -(-(len(fine) - 1) // _MOST_TIMES)
    priced = check_costs(term, costs)
    batch = jtu.tree_map(lambda leaf: leaf[:batch_size], (y0s, own))
    settings = (terms, fine, y0s, args, labels, key, time_variable, costs, float(most), float(distribution))
    seconds = time_levels(term, fine[0], batch[0], batch[1], args)
    relative = relative_costs(term, priced, seconds, fine[0], y0, first)
    problem: dict[str, Any] = dict(
        args=args, labels=labels, key=key, costs=relative, time_variable=time_variable
    )
    entries = _entries(
        partial(FitPilots, make_terms, fine, stride, y0s, batch_size=batch_size, **problem),
        relative,
        (len(fine) - 1) // stride,
        float(most),
        float(distribution),
        partial(kept_parts, "fit", keep_in, settings),
        progress,
    )
    levels, tables, errors, fitted, distances = zip(*entries, strict=True)
    return FittedSteps(
        costs=relative,
        seconds=seconds,
        batch=min(batch_size, count),
        device=jax.devices()[0].device_kind,
        levels=levels,
        coefficients=tables,
        errors=np.stack(errors),
        fitted=fitted,
        distribution=float(distribution),
        distances=np.array(distances),
        levels_id=tuple(level_id(level) for level in term.levels),
        state_id=state_id(y0),
    )


def _entries(
    make_pilots: Callable[[], FitPilots],
    costs: Float[np.ndarray, " levels"],
    times: int,
    most: float,
    distribution: float,
    parts: Callable[[Callable[[], None]], KeptParts],
    progress: bool,
) -> list[Entry]:
    """The entries of the catalogue, for pilots with so many times; `parts` gives the kept parts of the fit."""
    work = 1 + units_of_search(costs, most, times)
    with show_progress("searching steps", total=work, unit="searches", shown=progress) as display:
        kept = parts(display.restart)
        pilots = make_pilots()
        display.advance(1, "reference trajectories")
        found = list(search_schedules(pilots, most, kept, display.advance))
        display.update(work)
    schedules = worth_fitting(found, costs, times, distribution=distribution > 0)
    with show_progress("fitting steps", total=len(schedules), unit="schedules", shown=progress) as display:
        entries = catalogue_entries(pilots, schedules, distribution, parts(display.restart), display.advance)
    return worth_keeping(entries, costs, distribution)


def _check_settings(pilots: int, most: float | int, distribution: float | int) -> None:
    """Raises `ValueError` for settings out of range."""
    if pilots < _FEWEST_PILOTS:
        raise ValueError(
            f"fit_steps was given {pilots} pilots; at least {_FEWEST_PILOTS} initial states are expected."
        )
    if not most >= SINGLE[0]:
        raise ValueError(
            f"fit_steps was given most={most!r}; the cost of at least {SINGLE[0]} evaluations of the finest level is "
            "expected, for example most=16."
        )
    if not 0 <= distribution < 1:
        raise ValueError(
            f"fit_steps was given distribution={distribution!r}; a share of the objective, from 0 to below 1, is "
            "expected, for example distribution=0.9."
        )
