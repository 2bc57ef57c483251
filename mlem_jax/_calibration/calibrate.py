"""Measuring levels along real trajectories, and trying ML-EM on them."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, PRNGKeyArray, PyTree

from .._coins import AbstractCoins, IndependentCoins, StratifiedCoins, SystematicCoins
from .._custom_types import Args, Clock, Y
from .._solver.method import check_method, Order, single_level_solver
from .._term import find_multilevel_term
from .calibration import Calibration, level_id, state_id
from .costs import check_costs, relative_costs, time_levels
from .pilots import Only, Own, Planned, rms, root_mean, Same, segmented_ends, squares, sweep
from .trials import BUDGETS, try_coins

_TRIED = (IndependentCoins(), StratifiedCoins(), SystematicCoins(), SystematicCoins(offset=0.5))
_FEWEST_STEPS = 8


def calibrate(
    terms: PyTree | Callable[[PRNGKeyArray], PyTree],
    ts: ArrayLike,
    y0s: Y,
    args: Args = None,
    *,
    labels: PyTree = None,
    key: PRNGKeyArray,
    order: Order = 1,
    clock: Clock = "time",
    costs: Sequence[float] | Literal["flops", "seconds"] | None = None,
    finest_error: float | None = None,
    probes: int = 2,
    sensitivity_level: int = -2,
    batch_size: int = 32,
    trials: Sequence[AbstractCoins] = _TRIED,
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
    - `args`: what every pilot hands to the levels as their `args`; or
    - `labels`: arrays with a leading axis of `P`: what each pilot hands to them instead.
    - `key`: for the random directions, trial coins, and noise; keyword-only.
    - `order`: of the steps that plans take: 1 for [`mlem_jax.MLEM`][], 2 for [`mlem_jax.MLAB2`][].
    - `clock`: of `MLAB2`, `"time"` or `"log"`.
    - `costs`: cost of one evaluation of each level, in any unit; or `"flops"`, as compiled; or
        `"seconds"`, by the clock for a batch. By default those of the term, or else the FLOPs.
    - `finest_error`: the finest level's own RMS error at the end, if known; only reported.
    - `probes`: random directions per trajectory.
    - `sensitivity_level`: index of the level whose derivative is used; the second finest by default.
    - `batch_size`: pilot trajectories treated at a time; bounds the memory.
    - `trials`: the coins with which to try ML-EM on the pilots. A plan with coins that were not tried is
        only the linear model's.
    - `progress`: whether to show a progress bar.

    Costs about `5 N` evaluations of the finest level on all pilots.

    Raises `ValueError` for terms without a MultilevelTerm, with fewer than two levels, for labels beside `args` or
    of another number than the pilots, for a wrong number of costs, times that are not monotone, or `N` not a
    multiple of 4.
    """
    check_method(order, clock)
    keys = jr.split(key, 3)
    pilots = jtu.tree_leaves(y0s)[0].shape[0]
    make_terms = terms if _makes_terms(terms) else Same(terms)
    example = make_terms(keys[0])
    place, term = find_multilevel_term(example)
    num_levels = len(term.levels)
    if num_levels < 2:
        raise ValueError("There is nothing to calibrate with one level; use diffrax.Euler().")
    ts = jnp.asarray(ts, jnp.result_type(float))
    _check_times(ts)
    _check_labels(labels, args, pilots)
    labels = jtu.tree_map(jnp.asarray, labels)
    y0 = jtu.tree_map(lambda leaf: leaf[0], y0s)
    first_args = Own(keys[0], jtu.tree_map(lambda leaf: leaf[0], labels)).args(args)
    term.check_levels(ts[0], y0, first_args)
    priced = check_costs(term, costs)

    own = Own(jr.split(keys[0], pilots), labels)
    probe_keys = jr.split(keys[1], pilots)
    starts = range(0, pilots, batch_size)
    batches = [jtu.tree_map(lambda leaf: leaf[i : i + batch_size], (y0s, own)) for i in starts]  # noqa: B023
    total = len(ts) - 1
    coarser = [m for m in (8, 16, 32) if total % m == 0 and total // m >= _FEWEST_STEPS]
    strides = [1, 2, 4, *coarser]
    work = len(batches) * (4 + num_levels * len(strides)) + len(trials) * len(BUDGETS)
    with _bar(work, progress) as tell:
        tell("timing the levels", 0)
        seconds = time_levels(term, ts[0], batches[0][0], batches[0][1], args)
        relative = relative_costs(term, priced, seconds, ts[0], y0, first_args)
        tell("increments along trajectories", 0)
        found = []
        for start, (ys, owned) in zip(starts, batches, strict=True):
            probe = probe_keys[start : start + batch_size]
            # With one level only, lest the derivatives of all of them be compiled.
            cheap = Planned(make_terms, (sensitivity_level % num_levels,))
            found.append(sweep(make_terms, cheap, ts, ys, args, probes, owned, probe))
            jax.block_until_ready(found[-1])
            tell("increments along trajectories", 4)
        sizes, kicks = (np.concatenate([np.asarray(f[j]) for f in found], axis=2) for j in (0, 1))
        _check_finite(kicks, ts)
        single: dict[tuple[int, int], list[PyTree]] = {}
        solver = single_level_solver(order, clock)

        def method(part: slice) -> diffrax.AbstractSolver:
            return solver

        for stride in strides:
            for level in range(num_levels):
                alone = Only(make_terms, place, level)
                single[level, stride] = [
                    segmented_ends(method, alone, ts[::stride], total // strides[-1], ys, args, owned)
                    for ys, owned in batches
                ]
                jax.block_until_ready(single[level, stride])
                tell("each level alone", len(batches))
        reference, left = _reference(single, num_levels - 1, order)
        rows = [
            [root_mean(squares(single[k, m], reference) + left**2) for m in reversed(strides)]
            for k in range(num_levels)
        ]
        errors, spreads = np.moveaxis(np.array(rows), 2, 0)
        calibration = Calibration(
            ts=np.asarray(ts, float),
            increment=np.sqrt(np.mean(sizes, axis=2)),
            kicks=np.asarray(kicks, np.float32),
            costs=relative,
            seconds=seconds,
            single_steps=np.array([total // m for m in reversed(strides)]),
            single_error=errors,
            single_spread=spreads,
            check_budget=np.zeros(0),
            check_predicted=np.zeros(0),
            check_measured=np.zeros(0),
            check_spread=np.zeros(0),
            check_coins=(),
            batch=len(jtu.tree_leaves(batches[0][0])[0]),
            device=jax.devices()[0].device_kind,
            levels_id=tuple(level_id(level) for level in term.levels),
            state_id=state_id(y0),
            finest_error=finest_error,
            order=order,
            clock=clock,
        )
        alone_ends = {stride: single[num_levels - 1, stride] for stride in strides}
        return try_coins(calibration, trials, make_terms, batches, args, alone_ends, keys[2], tell)


def _makes_terms(terms: Any) -> bool:
    return callable(terms) and not isinstance(terms, diffrax.AbstractTerm)


def _check_labels(labels: PyTree, args: Args, pilots: int) -> None:
    if labels is not None and args is not None:
        raise ValueError("Give args, the same for all pilots, or labels, one for each; not both.")
    for leaf in jtu.tree_leaves(labels):
        if jnp.shape(leaf)[:1] != (pilots,):
            raise ValueError(
                f"labels has an array of shape {jnp.shape(leaf)} for {pilots} pilots; one entry per pilot is "
                f"expected, shape ({pilots}, ...). For the same for all write args=..."
            )


def _check_times(ts: jax.Array) -> None:
    steps = np.diff(np.asarray(ts))
    if ts.ndim != 1 or len(steps) < 4 or len(steps) % 4 or not (np.all(steps > 0) or np.all(steps < 0)):
        raise ValueError(
            f"calibrate was given times of shape {ts.shape}; an increasing or decreasing sequence is "
            "expected whose number of steps is a multiple of 4, for example jnp.linspace(t0, t1, 129)."
        )


def _check_finite(kicks: np.ndarray, ts: Array) -> None:
    bad = ~np.all(np.isfinite(kicks), axis=(1, 3))
    if np.any(bad):
        steps = len(ts) - 1
        raise ValueError(
            f"{int(np.sum(np.any(bad, axis=0)))} of {kicks.shape[2]} pilot trajectories of Euler on the finest level "
            f"with {steps} steps, or the derivatives along them, are not finite. Calibrate with a finer ts, for "
            f"example {4 * steps} steps, or with sensitivity_level=0 if only the derivatives explode."
        )


def _reference(
    single: dict[tuple[int, int], list[PyTree]], finest: int, order: int
) -> tuple[list[PyTree], float]:
    """The best guess at the exact solution of the finest level, and the RMS error that it is left with.

    Richardson extrapolation where the method converges at its order (differences that fall by `2**order` when
    the step is halved). Elsewhere the run with all steps, whose error is then about its distance to half of them:
    so it is for errors of order 1/2 that are uncorrelated from one halving to the next.
    """
    fine, half, quarter = (single[finest, m] for m in (1, 2, 4))
    last = rms(half, fine)
    gain = 2**order
    if rms(quarter, half) < 0.8 * gain * last:
        return fine, last
    return [
        jtu.tree_map(lambda a, b: a + (a - b) / (gain - 1), f, h) for f, h in zip(fine, half, strict=True)
    ], 0.0


@contextlib.contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[str, int], None]]:
    """A progress bar, as a function of what is being done and of how much work is done since."""
    if not shown or importlib.util.find_spec("rich") is None:
        yield lambda what, advance: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("calibrating: {task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda what, advance: bar.update(task, description=what, advance=advance)
