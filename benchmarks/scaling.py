"""Study 5: what a solve takes in seconds, memory and compilation, as it grows.

Run `python benchmarks/scaling.py --quick` (or `--full`) on a machine that does nothing else; `--smoke` is for tests.
Writes `benchmarks/results/scaling_quick.json` and `.png` (`scaling_full`). The shipped ladder and random-feature
levels, probability flow and ODE, midpoint coins with a fixed number of evaluations of every level: this measures the
solver, not the error.

1. batch: seconds per image against the batch size, ML-EM beside Euler with as many finest evaluations.
2. levels: two, three and four of the ladder's levels. 3. steps: 16 to 128, with the same evaluations.
4. devices: `diffusion.sample` on one and two host devices, in processes of their own; and their peak memory.
5. memory: what the compiled solve needs beside its arguments, as XLA counts it.
6. compile: seconds of tracing and compiling against the number of levels.
7. loop: diffeqsolve with ML-EM against a `lax.scan` of the same steps written by hand, which has the coins as data.

Seconds are medians of interleaved calls, compilation apart; a share of the promised speed compares with evaluations
of the levels one by one, timed in the same rounds.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _harness import add_sizes, interleaved_seconds, median_ratio, RESULTS, write_results
from _hierarchies import Together
from _ladder_study import tiny_ladder
from _problems import random_feature_levels
from _scaling_report import draw_figure, report
from jaxtyping import Array

import mlem_jax as ml
from mlem_jax.diffusion import Ladder, load_ladder, sample
from mlem_jax.plot import save_figure

LOOKS = 4  # at the finest level; twice as many at each cheaper one, and the cheapest in every step.
MIDPOINT = ml.SystematicCoins(offset=0.5)


class Size(NamedTuple):
    """Batch sizes, the one for everything else, step counts (the last one for everything else), images of a device's
    run, most levels compiled, rounds of timing."""

    batches: tuple[int, ...]
    batch: int
    steps: tuple[int, ...]
    images: int
    levels: int
    rounds: int


SIZES = {
    "smoke": Size((1, 2), 2, (4, 8), 4, 2, 1),
    "quick": Size((1, 4, 16, 64, 256), 16, (16, 32, 64, 128), 64, 6, 3),
    "full": Size((1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024), 64, (16, 32, 64, 128, 256, 512), 512, 10, 9),
}


def plan_of(ts: Any, levels: tuple[int, ...], costs: Any) -> ml.Plan:
    """A plan by hand: no error is promised."""
    steps, kept = len(ts) - 1, len(levels)
    looks = LOOKS * 2.0 ** (kept - 1 - np.arange(kept))
    table = np.tile(np.minimum(1.0, looks / steps), (steps, 1))
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
def solve(terms: Any, solver: Any, ts: Array, y0: Array) -> tuple[Array, Any]:
    """The whole batch as one state."""
    sol = diffrax.diffeqsolve(
        terms,
        solver,
        ts[0],
        ts[-1],
        None,
        y0,
        stepsize_controller=diffrax.StepTo(ts),
        saveat=diffrax.SaveAt(t1=True, solver_state=True),
        max_steps=len(ts) - 1,
    )
    assert sol.ys is not None
    return sol.ys[0], sol.solver_state


@eqx.filter_jit
def evaluate(level: Any, y: Array, count: int) -> Array:
    """So many evaluations in a row."""

    def body(y: Array, _: None) -> tuple[Array, None]:
        return y - 0.01 * level(jnp.asarray(1.0), y, None), None

    return jax.lax.scan(body, y, None, length=count)[0]


def multilevel(terms: Any, plan: ml.Plan) -> tuple[Any, Any, Array]:
    return plan.terms(terms), plan.solver(key=jr.key(0)), plan.grid


def measured(term: ml.MultilevelTerm, plan: ml.Plan, y0: Array, rounds: int) -> dict[str, Any]:
    """Seconds per trajectory of ML-EM and of Euler on the finest level with as many evaluations of it."""
    arguments, size, calls_timed = multilevel(term, plan), len(y0), 5
    counts = ml.evaluation_report(solve(*arguments, y0)[1])
    looks = int(counts.evaluations[-1])
    grid = plan.grid[jnp.round(jnp.linspace(0, len(plan.ts) - 1, looks + 1)).astype(int)]
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
        "euler_steps": looks,
        "euler_seconds_per_sample": float(np.median(euler)) / size,
        "promised_over_taken": median_ratio(promised, ours),
    }


def noise(ladder: Ladder, size: int) -> Array:
    return ladder.config.process.s_max * jr.normal(jr.key(1), (size, *ladder.config.shape))


def of_levels(count: int, kept: int) -> tuple[int, ...]:
    """The cheapest level and the finest ones."""
    return (0, *range(count - kept + 1, count))


def times(ladder: Ladder, size: Size) -> dict[str, list[dict[str, Any]]]:
    """Studies 1 to 3."""
    term, flops = ladder.term(), ladder.flops()
    count, most = len(flops), size.steps[-1]

    def one(batch: int, kept: int, steps: int) -> dict[str, Any]:
        plan = plan_of(ladder.config.process.grid(steps), of_levels(count, kept), flops)
        return measured(term, plan, noise(ladder, batch), size.rounds)

    found = {
        "batch": [one(batch, count, most) for batch in size.batches],
        "levels": [one(size.batch, kept, most) for kept in range(2, count + 1)],
        "steps": [one(size.batch, count, steps) for steps in size.steps],
    }
    return found


def compiled(arguments: tuple[Any, ...]) -> tuple[Any, float]:
    """The compiled solve, and the seconds that tracing and compiling took."""
    jax.clear_caches()
    start = time.perf_counter()
    made: Any = solve
    found = made.lower(*arguments).compile()
    return found.compiled, time.perf_counter() - start


def megabytes(arguments: tuple[Any, ...]) -> dict[str, float]:
    found = compiled(arguments)[0].memory_analysis()
    return {
        "beside_arguments": (found.temp_size_in_bytes + found.output_size_in_bytes) / 1e6,
        "arguments": found.argument_size_in_bytes / 1e6,
    }


def memory(ladder: Ladder, size: Size) -> list[dict[str, Any]]:
    """Study 5."""
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
    """Levels, times and states of a hierarchy of small matrices, gamma 1.5."""
    levels, costs = random_feature_levels(gamma=1.5, num_levels=count)
    term = ml.MultilevelTerm(*map(Together, levels), costs=costs)
    return term, jnp.linspace(0.0, 2.0, steps + 1), jr.normal(jr.key(2), (16, 16))


def compilation(ladder: Ladder, size: Size) -> list[dict[str, Any]]:
    """Study 6."""
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
    """ML-EM as one would write it without a library."""

    def body(y: Array, step: Step) -> tuple[Array, None]:
        total = jnp.zeros_like(y)
        for k, level in enumerate(levels):

            def add(total: Array, k: int = k, level: Any = level) -> Array:
                return total + step.factors[k] * step.length * level(step.t, y, None)

            total = jax.lax.cond(step.factors[k] != 0, add, lambda total: total, total)
        return y + total, None

    return jax.lax.scan(body, y0, steps)[0]


def loop(name: str, term: ml.MultilevelTerm, ts: Array, y0: Array, rounds: int) -> dict[str, Any]:
    """Study 7, for one problem."""
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


def devices(count: int, name: str) -> dict[str, Any]:
    """Study 4, one process."""
    program = [sys.executable, __file__, f"--{name}", "--devices", str(count)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}".strip()
    environment = {**os.environ, "XLA_FLAGS": flags}
    output = subprocess.run(program, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def on_these_devices(ladder: Ladder, size: Size) -> dict[str, Any]:
    """What the other process of study 4 does."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = plan_of(
        ladder.config.process.grid(size.steps[-1]), tuple(range(len(ladder.networks))), ladder.flops()
    )

    def draw() -> float:
        start = time.perf_counter()
        sample(ladder, n=size.images, plan=plan, key=jr.key(0), batch_size=size.images, progress=False)
        return time.perf_counter() - start

    first = draw()
    seconds = [draw() for _ in range(size.rounds)]
    return {
        "devices": len(jax.devices()),
        "seconds_per_sample": float(np.median(seconds)) / size.images,
        "first_call_seconds": first,
        "megabytes_after_import": before / 1e3,
        "megabytes_at_most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def ladder_of(name: str) -> Ladder:
    return tiny_ladder(3) if name == "smoke" else load_ladder()


def study(name: str, counts: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    """All parts; other processes for the `counts` of devices."""
    ladder, size = ladder_of(name), SIZES[name]
    found: dict[str, Any] = {"devices": [devices(count, name) for count in counts]}
    found |= times(ladder, size)
    cheap, y0 = random_features(4, 128), noise(ladder, size.batch)
    found["loop"] = [
        loop("random features, 4 levels", *cheap, size.rounds),
        loop("networks", ladder.term(), ladder.config.process.grid(size.steps[-1]), y0, size.rounds),
    ]
    # Last, since these forget what is compiled.
    found["memory"], found["compile"] = memory(ladder, size), compilation(ladder, size)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--devices", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    name = arguments.size
    if arguments.devices is not None:
        print(json.dumps(on_these_devices(ladder_of(name), SIZES[name])))
        return
    found = study(name)
    print(report(found))
    if name != "smoke":
        save_figure(draw_figure(found), RESULTS / f"scaling_{name}.png")
        print("written:", write_results(f"scaling_{name}", found))


if __name__ == "__main__":
    main()
