"""From terms and pilots to a catalogue of fitted steps, in one call."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import ArrayLike, Float, PRNGKeyArray, PyTree

from .._custom_types import Args, TimeVariable, Y
from .._fingerprint import level_id, state_id
from .._progress import show_progress
from .._solver import MultistepCoefficients
from .._term import as_terms_of_key, find_multilevel_term
from .costs import check_costs, relative_costs, time_levels
from .envelope import cost_to_reach, envelope
from .fit_catalogue import FittedSteps
from .fit_law import Law
from .fit_pilots import FitPilots
from .fit_refine import refine
from .fit_rollout import coefficients_of, Memory, roll_out, Schedule
from .fit_step import everyone, left_out
from .inputs import check_labels
from .pilots import PilotInputs
from .search_steps import Found, multilevel, Searcher, single_level

_MEMORY = Memory()
_FEWEST_PILOTS, _FEWEST_STEPS = 8, 8
# Steps are chosen among at most this many times: as many as the ODEs at hand need for a reference.
_MOST_TIMES = 128
# The search rolls out this many pilots; the steps that it finds are then fitted on all of them.
_SEARCHED = 40
# Groups of pilots, each held out in turn.
_GROUPS = 4
# Numbers of steps of a single level, as far as their cost is wanted.
_SINGLE = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 25, 32)
# Looks at the finest level are searched up to this number.
_MOST_LOOKS = 10
# The search ends once so many numbers of looks in turn do worse than the finest level alone.
_USELESS = 2
# Numbers of steps for cheaper levels alone.
_CHEAP = (8, 16)


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
    progress: bool = True,
) -> FittedSteps:
    """Fits steps of all costs for a ladder of levels, or for one: their times, which levels are evaluated in which
    step, and the multiples of these drifts.

    The coefficients of a step are those that bring the pilots nearest to the reference path at its end, where each
    pilot is rolled out with the coefficients found so far (least squares, with a ridge towards the classical
    coefficients and less weight for pilots that are far off). Pilots held out choose the ridge and how many drifts and
    increments are used. Then a few Gauss-Newton steps lower the error at the end in all coefficients together, as long
    as that of held-out pilots falls. No network is trained. The steps' times and the looks are searched
    by such roll-outs, on the first 40 pilots. Related: S4S, LD3, BNS and generalised linear multistep solvers for one
    network.

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

    - `terms`: one [`mlem_jax.MultilevelTerm`][], or a `MultiTerm` of it and terms of additive noise; or a function of a
        key that returns them, to give each pilot noise of its own.
    - `ts`: times of the reference solution, `(N + 1,)`: a second-order solution of the finest level with these steps
        has to be accurate. Steps are chosen among at most 128 of these times, evenly spaced in the sequence.
    - `y0s`: initial states of the pilots, with a leading axis of `P`, at least 8. 64 to 128 are enough for images, 32
        for small states.
    - `args`, `labels`: as for [`mlem_jax.calibrate`][].
    - `key`: for the noise; keyword-only.
    - `time_variable`: of the classical coefficients, `"time"` or `"log"`; `"log"` for diffusion models.
    - `costs`: of one evaluation of each level, as for [`mlem_jax.calibrate`][].
    - `most`: the largest cost of a catalogue entry, in evaluations of the finest level.
    - `distribution`: share of the objective, from 0 to below 1, that compares the pilots' states as a set with the
        reference's (means and spreads) rather than each pilot with its own path. For pictures 0.8: coefficients
        fitted for the path alone lose spread, which makes images of few evaluations blurred.
    - `batch_size`: pilots evaluated at a time; bounds the memory.
    - `progress`: whether to show a progress bar.

    Raises `ValueError` for terms without a `MultilevelTerm`, fewer than 8 pilots, times that are not monotone, a `most`
    below 2, a `distribution` that is no share, labels beside `args` or of another number than the pilots, or a wrong
    number of costs.
    """
    make_terms = as_terms_of_key(terms)
    example = make_terms(key)
    _, term = find_multilevel_term(example)
    fine = _checked_times(ts)
    count = jtu.tree_leaves(y0s)[0].shape[0]
    if count < _FEWEST_PILOTS:
        raise ValueError(
            f"fit_steps was given {count} pilots; at least {_FEWEST_PILOTS} initial states are expected."
        )
    if not most >= _SINGLE[0]:
        raise ValueError(
            f"fit_steps was given most={most!r}; the cost of at least {_SINGLE[0]} evaluations of the finest level is "
            "expected, for example most=16."
        )
    if not 0 <= distribution < 1:
        raise ValueError(
            f"fit_steps was given distribution={distribution!r}; a share of the objective, from 0 to below 1, is "
            "expected, for example distribution=0.8."
        )
    check_labels(labels, args, count)
    labels = jtu.tree_map(jnp.asarray, labels)
    y0 = jtu.tree_map(lambda leaf: leaf[0], y0s)
    own = PilotInputs(jr.split(key, count), labels)
    first = own.args(args) if labels is None else jtu.tree_map(lambda x: x[0], labels)
    term.check_levels(fine[0], y0, first)
    priced = check_costs(term, costs)
    stride = -(-(len(fine) - 1) // _MOST_TIMES)
    batch = jtu.tree_map(lambda leaf: leaf[:batch_size], (y0s, own))
    seconds = time_levels(term, fine[0], batch[0], batch[1], args)
    relative = relative_costs(term, priced, seconds, fine[0], y0, first)
    work = _units_of_work(relative, float(most), (len(fine) - 1) // stride)
    with show_progress("fitting steps", total=work, unit="schedules", shown=progress) as display:
        pilots = FitPilots(
            make_terms,
            fine,
            stride,
            y0s,
            args=args,
            labels=labels,
            key=key,
            costs=relative,
            time_variable=time_variable,
            batch_size=batch_size,
        )
        display.advance(1, "reference path")
        found = list(_search(pilots, float(most), display.advance))
        levels, tables, errors, fitted = [], [], [], []
        # Errors are those of pilots that took no part in the search, where these are the most.
        judged = slice(_SEARCHED if count >= 2 * _SEARCHED else 0, None)
        for entry in _worth_it(found):
            table, apart, better = _final(
                pilots, entry.schedule, float(distribution), lambda what: display.advance(0, what)
            )
            levels.append(entry.schedule.levels)
            tables.append(table)
            errors.append(apart[judged])
            fitted.append(better)
            display.advance(1, f"all pilots, cost {entry.cost:.1f}")
        display.update(work)
    return FittedSteps(
        costs=relative,
        seconds=seconds,
        batch=min(batch_size, count),
        device=jax.devices()[0].device_kind,
        levels=tuple(levels),
        coefficients=tuple(tables),
        errors=np.stack(errors),
        fitted=tuple(fitted),
        levels_id=tuple(level_id(level) for level in term.levels),
        state_id=state_id(y0),
    )


def _search(pilots: FitPilots, most: float, report: Callable[[int, str], None]) -> Iterator[Found]:
    """Schedules of all costs: the finest level alone, cheaper ones alone, and several levels."""
    few = pilots.part(min(_SEARCHED, pilots.count))
    searcher = Searcher(few, _MEMORY, left_out(few.count, _GROUPS))
    finest = len(pilots.costs) - 1
    counts = _counts(_SINGLE, 1.0, most, searcher.times)
    alone = []
    for found in single_level(searcher, finest, counts):
        report(1, f"finest level alone, {len(found.schedule.looks)} steps")
        alone.append(found)
        yield found
    for level in range(finest):
        counts = _counts(_CHEAP, float(pilots.costs[level]), most, searcher.times)
        for found in single_level(searcher, level, counts):
            report(1, f"level {level + 1} alone, {len(found.schedule.looks)} steps")
            yield found
    if finest:
        useless = 0
        for found in multilevel(searcher, finest, min(_MOST_LOOKS, int(most))):
            report(1, f"several levels, cost {found.cost:.1f}")
            yield found
            cost, error = envelope(
                np.array([one.cost for one in alone]), np.array([one.rollout.typical_error for one in alone])
            )
            worse = cost_to_reach(cost, error, found.rollout.typical_error) < found.cost
            useless = useless + 1 if worse else 0
            # With more looks the finest level alone only comes nearer.
            if useless == _USELESS:
                return


def _worth_it(found: list[Found]) -> list[Found]:
    """Those that nothing of the search beats at a smaller cost, and all of one level, with which they are compared."""

    def beaten(one: Found) -> bool:
        return any(
            other.cost <= one.cost and other.rollout.typical_error < 0.95 * one.rollout.typical_error
            for other in found
        )

    finest = max(found, key=lambda one: one.schedule.base).schedule.base
    return [one for one in found if one.schedule.levels == (finest,) or not beaten(one)]


def _final(
    pilots: FitPilots, schedule: Schedule, distribution: float, report: Callable[[str], None]
) -> tuple[MultistepCoefficients, np.ndarray, bool]:
    """A schedule's coefficients from all pilots, the errors of pilots held out, and whether these prefer the fitted
    coefficients to the classical ones.

    Each group of pilots is held out of a fit of its own. The coefficients are the mean of these fits, which all pilots
    take part in alike."""
    law = Law.of(pilots.path[-1], distribution) if distribution else None
    held_out = roll_out(pilots, schedule, _MEMORY, left_out(pilots.count, _GROUPS), law=law)
    # What is refined is the distance to each pilot's own path.
    held_out = held_out if law is not None else refine(pilots, held_out, report)
    classical = roll_out(pilots, schedule, _MEMORY, everyone(pilots.count), classical=True)
    better = held_out.typical_error < classical.typical_error
    chosen = held_out if better else classical
    return coefficients_of(chosen, pilots.ts), chosen.errors, better


def _checked_times(ts: ArrayLike) -> Float[np.ndarray, " times"]:
    times = np.asarray(ts, float)
    lengths = np.diff(times) if times.ndim == 1 else np.zeros(1)
    if len(lengths) < _FEWEST_STEPS or not (np.all(lengths > 0) or np.all(lengths < 0)):
        raise ValueError(
            f"fit_steps was given times of shape {times.shape}; an increasing or decreasing sequence of at least "
            f"{_FEWEST_STEPS + 1} is expected, for example np.linspace(t0, t1, 129)."
        )
    return times


def _units_of_work(costs: Float[np.ndarray, " levels"], most: float, times: int) -> int:
    """How often progress is reported at most: once for each schedule that is searched and for each that is fitted."""
    finest = len(costs) - 1
    single, looks = len(_counts(_SINGLE, 1.0, most, times)), min(_MOST_LOOKS, int(most)) if finest else 0
    cheap = sum(len(_counts(_CHEAP, float(cost), most, times)) for cost in costs[:-1])
    return 2 * (single + looks + cheap) + 1


def _counts(wanted: Sequence[int], cost: float, most: float, times: int) -> list[int]:
    """Those numbers of steps of a level that are affordable."""
    return [n for n in wanted if n <= min(most / cost, times)]
