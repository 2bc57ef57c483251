"""Measuring levels along real trajectories, and trying ML-EM on them."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, Int, PRNGKeyArray, PyTree
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ._calibration import Calibration, level_id, state_id
from ._coins import AbstractCoins, IndependentCoins, StratifiedCoins, SystematicCoins
from ._plan import coins_name, keep_levels
from ._planning import make_plan
from ._predict import error_of_counts, is_deterministic, select, Selection, toss
from ._solver import MLEM
from ._sweep import ends, sweep
from ._term import find_multilevel_term, MultilevelTerm
from ._types import Args, Y

_TRIED = (IndependentCoins(), StratifiedCoins(), SystematicCoins(), SystematicCoins(offset=0.5))
_TRIED_BUDGETS = (2.0, 4.0, 10.0, 25.0)
_TRIED_SEEDS = 2
_CLOCK_REPEATS = 5
_FEWEST_STEPS = 8


def calibrate(
    terms: PyTree | Callable[[PRNGKeyArray], PyTree],
    ts: ArrayLike,
    y0s: Y,
    args: Args = None,
    *,
    key: PRNGKeyArray,
    costs: Sequence[float] | None = None,
    finest_error: float | None = None,
    probes: int = 2,
    sensitivity_level: int = -2,
    batch_size: int = 32,
    trials: bool = True,
    progress: bool = True,
) -> Calibration:
    """Measures, along trajectories of the finest level: how large the increments of the levels are, how much
    they move the end state, what the levels cost, and how ML-EM then does.

    The end state's derivative is that of the flow of one cheaper level along the finest level's
    trajectory, applied to random directions in one sweep backwards: an approximation, as good as that
    level's derivative. The trial runs compare what follows from it with what happens.

    **Arguments:**

    - `terms`: as for [`mlem_jax.MLEM`][]; or a function of a key that returns them, to give each pilot
        trajectory noise of its own (otherwise all see the same).
    - `ts`: times of the pilots' Euler steps, `(N + 1,)`: the finest grid a plan can use. `N` should be a multiple
        of 4 with many factors of 2, since plans may take every 2nd, 4th, ... of these times.
    - `y0s`: initial states of the `P` pilot trajectories, with a leading axis. Errors of a plan are averages
        over such states; with `P = 32` they are good to about ten per cent.
    - `key`: for the random directions, trial coins, and noise; keyword-only.
    - `costs`: cost of one evaluation of each level, in any unit; by default those of the term, or else the
        compiled FLOPs.
    - `finest_error`: the finest level's own RMS error at the end, if known; only reported.
    - `probes`: random directions per trajectory.
    - `sensitivity_level`: index of the level whose derivative is used; the second finest by default.
    - `batch_size`: pilot trajectories treated at a time; bounds the memory.
    - `trials`: whether to try ML-EM on the pilots; without, a plan is only the linear model's.
    - `progress`: whether to show a progress bar.

    Costs about `5 N` evaluations of the finest level on all pilots.

    Raises `ValueError` for terms without a MultilevelTerm, with fewer than two levels, for a wrong number of
    costs, times that are not monotone, or `N` not a multiple of 4.
    """
    keys = jr.split(key, 3)
    pilots = jtu.tree_leaves(y0s)[0].shape[0]
    make_terms = terms if _makes_terms(terms) else _Same(terms)
    example = make_terms(keys[0])
    place, term = find_multilevel_term(example)
    num_levels = len(term.levels)
    if num_levels < 2:
        raise ValueError("There is nothing to calibrate with one level; use diffrax.Euler().")
    ts = jnp.asarray(ts, jnp.result_type(float))
    _check_times(ts)
    y0 = jtu.tree_map(lambda leaf: leaf[0], y0s)
    term.check_levels(ts[0], y0, args)
    relative = _costs(term, costs, ts[0], y0, args)

    noise_keys = jr.split(keys[0], pilots)
    probe_keys = jr.split(keys[1], pilots)
    starts = range(0, pilots, batch_size)
    batches = [jtu.tree_map(lambda leaf: leaf[i : i + batch_size], (y0s, noise_keys)) for i in starts]  # noqa: B023
    total = len(ts) - 1
    coarser = [m for m in (8, 16, 32) if total % m == 0 and total // m >= _FEWEST_STEPS]
    strides = [1, 2, 4, *coarser[-1:]]
    work = len(batches) * (4 + num_levels * len(strides)) + len(_TRIED) * len(_TRIED_BUDGETS)
    with _bar(work, progress) as tell:
        tell("timing the levels", 0)
        seconds = _seconds(term, ts[0], batches[0][0], args)
        tell("increments along trajectories", 0)
        found = []
        for start, (ys, noise) in zip(starts, batches, strict=True):
            probe = probe_keys[start : start + batch_size]
            cheap = _Only(make_terms, place, sensitivity_level % num_levels)
            found.append(
                sweep(
                    make_terms,
                    cheap,
                    ts,
                    ys,
                    args,
                    probes,
                    noise,
                    probe,
                )
            )
            jax.block_until_ready(found[-1])
            tell("increments along trajectories", 4)
        squares, kicks = (np.concatenate([np.asarray(f[j]) for f in found], axis=2) for j in (0, 1))
        single: dict[tuple[int, int], list[PyTree]] = {}
        for stride in strides:
            for level in range(num_levels):
                single[level, stride] = [
                    ends(diffrax.Euler(), _Only(make_terms, place, level), ts[::stride], ys, args, noise)[0]
                    for ys, noise in batches
                ]
                jax.block_until_ready(single[level, stride])
                tell("each level alone", len(batches))
        reference, left = _reference(single, num_levels - 1)
        calibration = Calibration(
            ts=np.asarray(ts, float),
            increment=np.sqrt(np.mean(squares, axis=2)),
            kicks=np.asarray(kicks, np.float32),
            costs=relative,
            seconds=seconds,
            single_steps=np.array([total // m for m in reversed(strides)]),
            single_error=np.array(
                [
                    [np.hypot(_rms(single[k, m], reference), left) for m in reversed(strides)]
                    for k in range(num_levels)
                ]
            ),
            check_budget=np.zeros(0),
            check_predicted=np.zeros(0),
            check_measured=np.zeros(0),
            check_coins=(),
            batch=len(jtu.tree_leaves(batches[0][0])[0]),
            device=jax.devices()[0].device_kind,
            levels_id=tuple(level_id(level) for level in term.levels),
            state_id=state_id(y0),
            finest_error=finest_error,
        )
        if not trials:
            return calibration
        return _try(calibration, make_terms, batches, args, single[num_levels - 1, 1], keys[2], tell)


class _Same(eqx.Module):
    """The same terms for every pilot. A module, so that its arrays are arguments of compiled code."""

    terms: PyTree

    def __call__(self, key: PRNGKeyArray) -> PyTree:
        return self.terms


class _Only(eqx.Module):
    """Terms with one of their levels alone, whose number is an argument of compiled code too."""

    make_terms: Callable[[PRNGKeyArray], PyTree]
    place: int | None = eqx.field(static=True)
    level: Int[Array, ""] = eqx.field(converter=jnp.asarray)

    def __call__(self, key: PRNGKeyArray) -> PyTree:
        terms = self.make_terms(key)
        _, term = find_multilevel_term(terms)
        # Plain functions, because lax.switch wants to hash its branches and modules have no hash.
        branches = [lambda t, y, args, f=f: f(t, y, args) for f in term.levels]
        kept = MultilevelTerm(lambda t, y, args: jax.lax.switch(self.level, branches, t, y, args))
        if self.place is None:
            return kept
        return diffrax.MultiTerm(*(kept if i == self.place else x for i, x in enumerate(terms.terms)))


def _makes_terms(terms: Any) -> bool:
    return callable(terms) and not isinstance(terms, diffrax.AbstractTerm)


def _check_times(ts: jax.Array) -> None:
    steps = np.diff(np.asarray(ts))
    if ts.ndim != 1 or len(steps) < 4 or len(steps) % 4 or not (np.all(steps > 0) or np.all(steps < 0)):
        raise ValueError(
            f"calibrate was given times of shape {ts.shape}; an increasing or decreasing sequence is "
            "expected whose number of steps is a multiple of 4, for example jnp.linspace(t0, t1, 129)."
        )


def _costs(term: MultilevelTerm, costs: Sequence[float] | None, t: Any, y0: Y, args: Args) -> np.ndarray:
    costs = term.costs if costs is None else costs
    if costs is None:
        counted = []
        for level in term.levels:
            jitted: Any = eqx.filter_jit(level)
            analysis = jitted.lower(t, y0, args).compile().compiled.cost_analysis()
            counted.append(float(analysis.get("flops", 0.0)))
        costs = counted
    array = np.asarray(costs, float)
    if array.shape != (len(term.levels),) or not np.all((array > 0) & np.isfinite(array)):
        raise ValueError(
            f"calibrate needs one positive cost for each of the {len(term.levels)} levels and has "
            f"{list(costs)}. Write MultilevelTerm(..., costs=(...)) or calibrate(..., costs=(...)), in any unit."
        )
    return array / array[-1]


def _seconds(term: MultilevelTerm, t: Any, ys: Y, args: Args) -> np.ndarray:
    """Median seconds of one evaluation of each level on a batch, without compilation."""
    medians = []
    for level in term.levels:
        call = eqx.filter_jit(lambda t, ys, args, level=level: jax.vmap(lambda y: level(t, y, args))(ys))
        jax.block_until_ready(call(t, ys, args))
        times = []
        for _ in range(_CLOCK_REPEATS):
            start = time.perf_counter()
            jax.block_until_ready(call(t, ys, args))
            times.append(time.perf_counter() - start)
        medians.append(float(np.median(times)))
    return np.array(medians)


def _rms(ends: list[PyTree], others: list[PyTree]) -> float:
    squares, count = 0.0, 0
    for end, other in zip(ends, others, strict=True):
        for a, b in zip(jtu.tree_leaves(end), jtu.tree_leaves(other), strict=True):
            squares += float(jnp.sum((a - b) ** 2))
            count += a.size
    return float(np.sqrt(squares / count))


def _reference(single: dict[tuple[int, int], list[PyTree]], finest: int) -> tuple[list[PyTree], float]:
    """The best guess at the exact solution of the finest level, and the RMS error that it is left with.

    Richardson extrapolation of Euler where that converges at first order (differences that halve with the
    step). Elsewhere Euler with all steps, whose error is then about its distance to Euler with half of them:
    so it is for errors of order 1/2 that are uncorrelated from one halving to the next.
    """
    fine, half, quarter = (single[finest, m] for m in (1, 2, 4))
    last = _rms(half, fine)
    if _rms(quarter, half) < 1.6 * last:
        return fine, last
    return [jtu.tree_map(lambda a, b: 2 * a - b, f, h) for f, h in zip(fine, half, strict=True)], 0.0


def _try(
    calibration: Calibration,
    make_terms: Callable[[PRNGKeyArray], PyTree],
    batches: list[PyTree],
    args: Args,
    euler: list[PyTree],
    key: PRNGKeyArray,
    tell: Callable[[str, int], None],
) -> Calibration:
    """Runs ML-EM with all steps at a few budgets, on the levels that a plan would keep, and compares its
    distance to Euler on the finest level with the linear prediction."""
    ts = jnp.asarray(calibration.ts, jnp.result_type(float))
    total = len(ts) - 1
    levels = _kept_levels(calibration, total)
    kicks = select(calibration, Selection(levels, 1))
    kept = _Planned(make_terms, levels)
    rows = []
    for coins in _TRIED:
        seeds = 1 if is_deterministic(coins) else _TRIED_SEEDS
        for budget in _TRIED_BUDGETS:
            tell(f"trial runs of ML-EM, {coins_name(coins)}", 1)
            if not 1.5 * calibration.costs[levels[0]] * total < budget < 0.5 * total:
                continue
            plan = make_plan(calibration, budget=budget, coins=coins, steps=total, levels=levels)
            table = np.concatenate([np.ones((total, kicks.pad)), plan.table], axis=1)
            # Tossed beforehand: so a few seeds are enough to compare, and one compiled solve is enough for all.
            counts = toss(coins, table, jr.split(jr.fold_in(key, len(rows)), seeds))
            errors = []
            for count in counts:
                tossed = _Tossed(jnp.asarray(count[:, kicks.pad :]))
                solver = MLEM(plan.probabilities, coins=tossed, key=key)
                found = [ends(solver, kept, ts, ys, args, noise)[0] for ys, noise in batches]
                errors.append(_rms(found, euler))
            predicted = error_of_counts(kicks, table, counts)
            rows.append((coins_name(coins), budget, predicted, float(np.sqrt(np.mean(np.square(errors))))))
    if not rows:
        return calibration
    names, budgets, predicted, measured = zip(*rows, strict=True)
    return dataclasses.replace(
        calibration,
        check_coins=names,
        check_budget=np.array(budgets),
        check_predicted=np.array(predicted),
        check_measured=np.array(measured),
    )


@contextlib.contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[str, int], None]]:
    """A progress bar, as a function of what is being done and of how much work is done since."""
    columns = (TextColumn("calibrating: {task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=not shown, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda what, advance: bar.update(task, description=what, advance=advance)


def _kept_levels(calibration: Calibration, steps: int) -> tuple[int, ...]:
    """The levels that a plan of middling budget keeps; all of them where it would use one alone."""
    everything = tuple(range(calibration.num_levels))
    try:
        levels = make_plan(calibration, budget=_TRIED_BUDGETS[2], steps=steps).levels
    except ValueError:
        return everything
    return levels if len(levels) > 1 else everything


class _Tossed(AbstractCoins):
    """Coins that have been tossed already."""

    counts: Int[Array, "steps levels"]

    def init(self, num_levels: int) -> None:
        return None

    def toss(self, p: Array, state: None, step: Array, key: PRNGKeyArray) -> tuple[Array, None]:
        return self.counts[step], state


class _Planned(eqx.Module):
    """Terms with some of their levels."""

    make_terms: Callable[[PRNGKeyArray], PyTree]
    levels: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray) -> PyTree:
        return keep_levels(self.make_terms(key), self.levels)
