"""The measurements of study 5: seconds, memory and compilation of a solve."""

import time
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _harness import interleaved_seconds, median_ratio
from _hierarchies import Together
from _methods import solve
from _problems import random_feature_levels
from jaxtyping import Array

import mlem_jax as ml
from mlem_jax.diffusion import Ladder

# Firings of the finest level. Each cheaper level has twice as many, and the cheapest fires in every step.
FIRINGS = 4
MIDPOINT = ml.SystematicCoins(offset=0.5)


class Size(NamedTuple):
    """Batch sizes, and the one of all other parts; step counts, of which the last is that of all other parts; images
    for the runs on several devices; the largest number of compiled levels; rounds of timing."""

    batches: tuple[int, ...]
    batch: int
    steps: tuple[int, ...]
    images: int
    levels: int
    rounds: int


def plan_of(ts: Any, levels: tuple[int, ...], costs: Any) -> ml.Plan:
    """A plan without a calibration, whose error is unknown."""
    steps, kept = len(ts) - 1, len(levels)
    firings = FIRINGS * 2.0 ** (kept - 1 - np.arange(kept))
    table = np.tile(np.minimum(1.0, firings / steps), (steps, 1))
    table[:, 0] = 1.0
    costs = np.asarray(costs, float)
    unknown = float("nan")
    return ml.Plan(
        ts=np.asarray(ts, float),
        levels=levels,
        table=table,
        coins=MIDPOINT,
        method=ml.EulerMaruyama(),
        costs=costs[list(levels)] / costs[-1],
        cost=unknown,
        error=unknown,
        discretisation=unknown,
        coin_error=unknown,
        relative_error_of_prediction=unknown,
        nonlinearity=1.0,
        speedup_over_finest=unknown,
        speedup_over_single=unknown,
        finest_error=None,
        advice=(),
    )


@eqx.filter_jit
def evaluate(level: Any, y: Array, count: int) -> Array:
    """A number of evaluations of a level, one after the other, in one compiled program."""

    def body(y: Array, _: None) -> tuple[Array, None]:
        return y - 0.01 * level(jnp.asarray(1.0), y, None), None

    return jax.lax.scan(body, y, None, length=count)[0]


def multilevel(terms: Any, plan: ml.Plan) -> tuple[Any, Any, Array]:
    """Terms, solver and grid of a plan."""
    return plan.terms(terms), plan.solver(key=jr.key(0)), plan.grid


def measured(term: ml.MultilevelTerm, plan: ml.Plan, y0: Array, rounds: int) -> dict[str, Any]:
    """Seconds per trajectory of ML-EM, and of Euler with the same number of evaluations of the finest level."""
    arguments, size, calls_timed = multilevel(term, plan), len(y0), 5
    counts = ml.evaluation_report(solve(*arguments, y0)[1])
    firings = int(counts.evaluations[-1])
    grid = plan.grid[jnp.round(jnp.linspace(0, len(plan.ts) - 1, firings + 1)).astype(int)]
    calls = [lambda: solve(*arguments, y0), lambda: solve(term, diffrax.Euler(), grid, y0)]
    calls += [lambda k=k: evaluate(term.levels[k], y0, calls_timed) for k in plan.levels]
    ours, euler, *levels = interleaved_seconds(calls, repeats=rounds)
    promised = [
        sum(int(n) * level[i] / calls_timed for n, level in zip(counts.evaluations, levels, strict=True))
        for i in range(rounds)
    ]
    return {
        "batch": size,
        "steps": len(plan.ts) - 1,
        "levels": [k + 1 for k in plan.levels],
        "evaluations": counts.evaluations.tolist(),
        "finest_evaluations": counts.finest_evaluations,
        "seconds_per_sample": float(np.median(ours)) / size,
        "euler_steps": firings,
        "euler_seconds_per_sample": float(np.median(euler)) / size,
        "promised_over_taken": median_ratio(promised, ours),
    }


def noise(ladder: Ladder, size: int) -> Array:
    """Initial states."""
    return ladder.config.process.s_max * jr.normal(jr.key(1), (size, *ladder.config.shape))


def of_levels(count: int, kept: int) -> tuple[int, ...]:
    """The cheapest level and the finest ones."""
    return (0, *range(count - kept + 1, count))


def times(ladder: Ladder, size: Size) -> dict[str, list[dict[str, Any]]]:
    """Parts 1 to 3: seconds against batch size, levels and steps."""
    term, flops = ladder.term(), ladder.flops()
    count, most = len(flops), size.steps[-1]

    def one(batch: int, kept: int, steps: int) -> dict[str, Any]:
        plan = plan_of(ladder.config.process.grid(steps), of_levels(count, kept), flops)
        return measured(term, plan, noise(ladder, batch), size.rounds)

    return {
        "batch": [one(batch, count, most) for batch in size.batches],
        "levels": [one(size.batch, kept, most) for kept in range(2, count + 1)],
        "steps": [one(size.batch, count, steps) for steps in size.steps],
    }


def compiled(arguments: tuple[Any, ...]) -> tuple[Any, float]:
    """The compiled solve, and the seconds of tracing and compiling."""
    jax.clear_caches()
    start = time.perf_counter()
    made: Any = solve
    found = made.lower(*arguments).compile()
    return found.compiled, time.perf_counter() - start


def megabytes(arguments: tuple[Any, ...]) -> dict[str, float]:
    """The memory of a compiled solve according to XLA."""
    found = compiled(arguments)[0].memory_analysis()
    return {
        "beside_arguments": (found.temp_size_in_bytes + found.output_size_in_bytes) / 1e6,
        "arguments": found.argument_size_in_bytes / 1e6,
    }


def memory(ladder: Ladder, size: Size) -> list[dict[str, Any]]:
    """Part 5: memory against batch size."""
    rows, steps = [], size.steps[-1]
    ts, term = ladder.config.process.grid(steps), ladder.term()
    plan = plan_of(ts, tuple(range(len(ladder.networks))), ladder.flops())
    for batch in size.batches:
        y0 = noise(ladder, batch)
        for name, arguments in (
            ("ML-EM, all levels", multilevel(term, plan)),
            ("Euler, finest level", (term, diffrax.Euler(), ts)),
        ):
            rows.append({"batch": batch, "method": name, **megabytes((*arguments, y0))})
    return rows


def random_features(count: int, steps: int) -> tuple[ml.MultilevelTerm, Array, Array]:
    """Levels, times and states of a hierarchy of small matrices with gamma = 1.5."""
    levels, costs = random_feature_levels(gamma=1.5, num_levels=count)
    term = ml.MultilevelTerm(*map(Together, levels), costs=costs)
    return term, jnp.linspace(0.0, 2.0, steps + 1), jr.normal(jr.key(2), (16, 16))


def compilation(ladder: Ladder, size: Size) -> list[dict[str, Any]]:
    """Part 6: seconds of compilation against the number of levels."""
    rows, steps = [], size.steps[-1]
    term, y0 = ladder.term(), noise(ladder, size.batch)
    problems: list[tuple[str, Any, Any, Any, int]] = []
    for kept in range(1, size.levels + 1):
        problems.append(("random features", *random_features(kept, steps), kept))
    for kept in range(1, len(ladder.networks) + 1):
        problems.append(("networks", term, ladder.config.process.grid(steps), y0, kept))
    for name, terms, ts, state, kept in problems:
        count = len(terms.levels)
        levels = (count - 1,) if kept == 1 else of_levels(count, kept)
        arguments = multilevel(terms, plan_of(ts, levels, terms.costs))
        if kept == 1:
            arguments = (terms, diffrax.Euler(), ts)
        seconds = [compiled((*arguments, state))[1] for _ in range(size.rounds)]
        rows.append({"problem": name, "levels": kept, "seconds": float(np.median(seconds))})
    return rows


class Step(NamedTuple):
    """One step as data: time, length, and the factor of each level, which is not evaluated where it is zero."""

    t: Array
    length: Array
    factors: Array


@eqx.filter_jit
def by_hand(levels: tuple[Any, ...], steps: Step, y0: Array) -> Array:
    """ML-EM written as a plain scan, without a library."""

    def body(y: Array, step: Step) -> tuple[Array, None]:
        total = jnp.zeros_like(y)
        for k, level in enumerate(levels):

            def add(total: Array, k: int = k, level: Any = level) -> Array:
                return total + step.factors[k] * step.length * level(step.t, y, None)

            total = jax.lax.cond(step.factors[k] != 0, add, lambda total: total, total)
        return y + total, None

    return jax.lax.scan(body, y0, steps)[0]


def loop(name: str, term: ml.MultilevelTerm, ts: Array, y0: Array, rounds: int) -> dict[str, Any]:
    """Part 7, for one problem: `diffeqsolve` against the plain scan."""
    plan = plan_of(ts, tuple(range(len(term.levels))), term.costs)
    terms, solver, grid = multilevel(term, plan)
    weights = plan.firing_pattern(key=jr.key(0)) / plan.table
    factors = weights - np.pad(weights[:, 1:], ((0, 0), (0, 1)))
    steps = Step(grid[:-1], jnp.diff(grid), jnp.asarray(factors, y0.dtype))
    ours, ends = (lambda: solve(terms, solver, grid, y0)[0]), by_hand(term.levels, steps, y0)
    scale = float(jnp.sqrt(jnp.mean(ends**2)))
    calls = [ours, lambda: by_hand(term.levels, steps, y0)]
    library, scan = interleaved_seconds(calls, repeats=5 * rounds)
    return {
        "problem": name,
        "relative_difference": float(jnp.max(jnp.abs(ours() - ends))) / scale,
        "library_over_scan": median_ratio(library, scan),
        "microseconds_more_per_step": 1e6 * (np.median(library) - np.median(scan)) / (len(ts) - 1),
        "scan_seconds": float(np.median(scan)),
    }
