"""From terms and pilots to a catalogue of fitted steps, in one call."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
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
from .kept_parts import kept_parts, KeptParts
from .pilots import PilotInputs
from .search_steps import Found, multilevel, Searcher, single_level

# How many drifts and increments a step may use: in the search, and in the end if held-out pilots prefer that.
_MEMORY, _LONG_MEMORY = Memory(), Memory(drifts=5, held=5)
_FEWEST_PILOTS, _FEWEST_STEPS = 8, 8
# Steps are chosen among at most this number of times. It is the number of steps with which a second-order reference of
# the shipped diffusion models is accurate.
_MOST_TIMES = 128
# The search uses this number of pilots. The steps that it finds are then fitted on all pilots.
_SEARCHED = 40
# Groups of pilots in the cross-validation; each is held out once.
_GROUPS = 4
# Numbers of steps of the finest level alone, up to the wanted cost.
_SINGLE = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 25, 32)
# Schedules are searched for up to this number of evaluations of the finest level.
_MOST_EVALUATIONS = 10
# The search ends after this number of consecutive schedules that need at least this fraction of the cost of the finest
# level alone.
_USELESS, _NO_GAIN = 2, 0.9
# Numbers of steps of cheaper levels alone.
_CHEAP = (8, 16)
# Steps of the finest level alone are what all others are compared with, by their error. They are fitted for the
# distribution only if this increases the error of held-out pilots by at most this factor. On the shipped ladder it does
# by 4 to 15%, and for several levels by -2 to 2%.
_TOLERATED = 1.05
# A schedule is beaten by one that is as cheap if its error is above this fraction of the other's. Closer errors are
# within the noise of the pilots.
_BEATEN = 0.95


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
    Each pilot has been rolled out with the coefficients of the earlier steps. The fit is a least-squares problem with a
    ridge towards the classical coefficients, in which pilots far from the reference have a smaller weight. Held-out
    pilots choose the ridge and the number of drifts and increments. Afterwards a few Gauss-Newton steps reduce the
    error at the end in all coefficients together, as long as the error of held-out pilots decreases. No network is
    trained. The times of the steps and the evaluations of higher levels are found by a search with such roll-outs on
    the first 40 pilots. Related methods for a single network are S4S, LD3, BNS and generalised linear multistep
    solvers.

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
        reduces standard deviations, which makes images with few evaluations blurred. Steps of the finest
        level alone whose error would increase by more than 5% are fitted to the trajectories alone.
    - `batch_size`: number of pilots evaluated together; it bounds the memory.
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
    work = _units_of_work(relative, float(most), (len(fine) - 1) // stride)
    problem: dict[str, Any] = dict(
        args=args, labels=labels, key=key, costs=relative, time_variable=time_variable
    )
    with show_progress("fitting steps", total=work, unit="schedules", shown=progress) as display:
        kept = kept_parts("fit", keep_in, settings, display.restart)
        pilots = FitPilots(make_terms, fine, stride, y0s, batch_size=batch_size, **problem)
        display.advance(1, "reference trajectories")
        found = list(_search(pilots, float(most), kept, display.advance))
        entries = _entries(pilots, found, float(distribution), kept, display.advance)
        display.update(work)
    levels, tables, errors, fitted = zip(*entries, strict=True)
    return FittedSteps(
        costs=relative,
        seconds=seconds,
        batch=min(batch_size, count),
        device=jax.devices()[0].device_kind,
        levels=levels,
        coefficients=tables,
        errors=np.stack(errors),
        fitted=fitted,
        levels_id=tuple(level_id(level) for level in term.levels),
        state_id=state_id(y0),
    )


def _check_settings(pilots: int, most: float | int, distribution: float | int) -> None:
    """Raises `ValueError` for settings out of range."""
    if pilots < _FEWEST_PILOTS:
        raise ValueError(
            f"fit_steps was given {pilots} pilots; at least {_FEWEST_PILOTS} initial states are expected."
        )
    if not most >= _SINGLE[0]:
        raise ValueError(
            f"fit_steps was given most={most!r}; the cost of at least {_SINGLE[0]} evaluations of the finest level is "
            "expected, for example most=16."
        )
    if not 0 <= distribution < 1:
        raise ValueError(
            f"fit_steps was given distribution={distribution!r}; a share of the objective, from 0 to below 1, is "
            "expected, for example distribution=0.9."
        )


def _entries(
    pilots: FitPilots,
    found: list[Found],
    distribution: float,
    kept: KeptParts,
    advance: Callable[[int, str], None],
) -> list[tuple[tuple[int, ...], MultistepCoefficients, np.ndarray, bool]]:
    """The entries of the catalogue: levels, coefficients, errors of held-out pilots, and whether they are fitted."""
    # Where there are enough pilots, errors are those of pilots that were not used in the search.
    unused = slice(_SEARCHED if pilots.count >= 2 * _SEARCHED else 0, None)
    names = [field.name for field in dataclasses.fields(MultistepCoefficients)]
    entries = []
    for number, one in enumerate(_worth_it(found)):
        name = f"entry-{number + 1}"
        inside = kept.within(name)

        def final(one: Found = one, parts: KeptParts = inside) -> tuple[np.ndarray, ...]:
            table, errors, better = _final(
                pilots, one.schedule, distribution, parts, lambda what: advance(0, what)
            )
            return (*(getattr(table, name) for name in names), errors, np.array(better))

        *numbers, errors, better = kept.arrays(name, final)
        table = MultistepCoefficients(**dict(zip(names, numbers, strict=True)))
        entries.append((one.schedule.levels, table, errors[unused], bool(better)))
        advance(1, f"all pilots, cost {one.cost:.1f}")
    return entries


def _search(
    pilots: FitPilots, most: float, kept: KeptParts, report: Callable[[int, str], None]
) -> Iterator[Found]:
    """Schedules of all costs: the finest level alone, cheaper ones alone, and several levels."""
    few = pilots.part(min(_SEARCHED, pilots.count))
    searcher = Searcher(few, _MEMORY, left_out(few.count, _GROUPS), kept)
    finest = len(pilots.costs) - 1
    counts = _counts(_SINGLE, 1.0, most, searcher.times)
    alone = []
    for found in single_level(searcher, finest, counts):
        report(1, f"finest level alone, {len(found.schedule.evaluated)} steps")
        alone.append(found)
        yield found
    for level in range(finest):
        counts = _counts(_CHEAP, float(pilots.costs[level]), most, searcher.times)
        for found in single_level(searcher, level, counts):
            report(1, f"level {level + 1} alone, {len(found.schedule.evaluated)} steps")
            yield found
    if finest:
        useless = 0
        single = [found.schedule for found in alone]
        for found in multilevel(searcher, finest, min(_MOST_EVALUATIONS, int(most)), single):
            report(1, f"several levels, cost {found.cost:.1f}")
            yield found
            cost, error = envelope(
                np.array([one.cost for one in alone]), np.array([one.typical_error for one in alone])
            )
            needed = cost_to_reach(cost, error, found.typical_error)
            useless = useless + 1 if found.cost > _NO_GAIN * needed else 0
            # The gain decreases with the number of evaluations.
            if useless == _USELESS:
                return


def _worth_it(found: list[Found]) -> list[Found]:
    """The schedules that no cheaper one beats, and all of the finest level alone, with which they are compared."""

    def beaten(one: Found) -> bool:
        return any(
            other.cost <= one.cost and other.typical_error < _BEATEN * one.typical_error for other in found
        )

    finest = max(found, key=lambda one: one.schedule.base).schedule.base
    return [one for one in found if one.schedule.levels == (finest,) or not beaten(one)]


def _final(
    pilots: FitPilots,
    schedule: Schedule,
    distribution: float,
    kept: KeptParts,
    report: Callable[[str], None],
) -> tuple[MultistepCoefficients, np.ndarray, bool]:
    """The coefficients of a schedule from all pilots, the errors of held-out pilots, and whether these errors are
    smaller than with the classical coefficients.

    Each group of pilots is held out of one fit. The coefficients are the mean of these fits, in which all pilots have
    the same weight."""
    groups = left_out(pilots.count, _GROUPS)
    tried = [roll_out(pilots, schedule, memory, groups) for memory in (_MEMORY, _LONG_MEMORY)]
    held_out = refine(pilots, min(tried, key=lambda rollout: rollout.typical_error), report, kept)
    classical = roll_out(pilots, schedule, _MEMORY, everyone(pilots.count), classical=True)
    if distribution:
        # Held-out distances to the pilots' own references do not rate distributions, for which a long memory is worse.
        law = Law.of(pilots.path[-1], distribution)
        also = roll_out(pilots, schedule, _MEMORY, groups, law=law)
        alone = schedule.levels == (len(pilots.costs) - 1,)
        tolerated = _TOLERATED * held_out.typical_error if alone else np.inf
        held_out = also if also.typical_error < min(tolerated, classical.typical_error) else held_out
    better = held_out.typical_error < classical.typical_error
    chosen = held_out if better else classical
    return coefficients_of(chosen, pilots.ts), chosen.errors, better


def _units_of_work(costs: Float[np.ndarray, " levels"], most: float, times: int) -> int:
    """The largest number of progress reports: one for each schedule that is searched, and one for each that is
    fitted."""
    finest = len(costs) - 1
    single, several = (
        len(_counts(_SINGLE, 1.0, most, times)),
        min(_MOST_EVALUATIONS, int(most)) if finest else 0,
    )
    cheap = sum(len(_counts(_CHEAP, float(cost), most, times)) for cost in costs[:-1])
    return 2 * (single + several + cheap) + 1


def _counts(wanted: Sequence[int], cost: float, most: float, times: int) -> list[int]:
    """The numbers of steps of a level whose cost is at most `most`."""
    return [n for n in wanted if n <= min(most / cost, times)]
