"""Study 8: are several levels cheaper than a single network, if the steps of both are fitted in the same way?

Run `python benchmarks/fitted.py` (`--smoke` is a test with few images that writes nothing). `--steps FILE` uses the
catalogue of an earlier run, `results/fitted_steps.npz`, instead of fitting a new one. Writes
`benchmarks/results/fitted.json`, the table `fitted.csv` and a picture of the curves.

`mlem_jax.fit_steps` makes the catalogue for the shipped ladder (probability flow) on 128 pilots. The study compares,
with fitted steps: the finest network alone; several levels; two networks that alternate along the trajectory (large
then small, as T-Stitch; large, small, large, as FlowBlending). Beside them are DPM-Solver++(2M) and plans with coins of
both orders. The reference is DPM-Solver++(2M) with 128 steps, on fresh noise, three batches of 64 images. The error is
the geometric mean over images of their RMS errors. The RMS error over all images is given too, but one or two images
that end in another basin dominate it. The cost of a method at a given error is interpolated on its curve of error
against cost, for each batch separately; reported are the median and the range over batches. The same in seconds: each
method is timed on one batch, in interleaved rounds without compilation.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _curves import best_grid, draw_curves, Row
from _fitted_methods import (
    ALONE_FITTED,
    LARGE_SMALL,
    LARGE_SMALL_LARGE,
    SEVERAL_FITTED,
    stepping,
    switching,
    useful_steps,
)
from _fitted_report import compared, predictions, report, rivals_of
from _harness import RESULTS, write_results, write_table
from _image_methods import image_problem, planned
from _methods import Batch, draw, marching, Method, on_grids, Shared
from _rivals import DPMSolver, Euler, march, Plain
from _runs import add_seconds, run

import mlem_jax as ml
from mlem_jax.diffusion import Ladder, load_ladder
from mlem_jax.diffusion._ladder import fit_ladder_steps, METHODS
from mlem_jax.plot import save_figure

RIVAL = "DPM-Solver++(2M)"
ALONE, SEVERAL = ALONE_FITTED, SEVERAL_FITTED
FIRST, SECOND = "MLEM, planned", "MLAB2, planned"
RIVAL_STEPS = (6, 8, 10, 14)
SINGLE_STEPS = (2, 3, 4, 5, 6, 8, 10)
BUDGETS = (2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
EULER, EULER_STEPS = "Euler", 50
REFERENCE_STEPS, PILOTS, ROUNDS = 128, 128, 5


class Fitted(NamedTuple):
    """A method with fitted steps, the geometric mean error of its held-out pilots, and how often a solve evaluates each
    level of the ladder."""

    method: Method
    predicted: float
    evaluations: list[int]


def fitted_methods(problem: Shared, steps: ml.FittedSteps) -> list[Fitted]:
    """The useful entries of the catalogue with the finest level alone or with several levels."""
    found = []
    for plan, method in useful_steps(problem, steps):
        counts = dict(zip(plan.levels, plan.coefficients.evaluations.tolist(), strict=True))
        evaluations = [counts.get(level, 0) for level in range(len(problem.levels))]
        found.append(Fitted(method, plan.typical_error, evaluations))
    return found


def other_methods(
    problem: Shared, ladder: Ladder, steps: Sequence[int], budgets: Sequence[float]
) -> list[Method]:
    """DPM-Solver++(2M) on two grids, Euler, and plans with coins."""
    process, rival = ladder.config.process, DPMSolver(Plain(problem.levels[-1], 1.0))
    found = on_grids(RIVAL, rival, process, steps, ("karras", "log"))
    found.append(
        marching(
            EULER, f"{EULER_STEPS} steps", Euler(Plain(problem.levels[-1], 1.0)), process.grid(EULER_STEPS)
        )
    )
    coins = ml.SystematicCoins(offset=0.5)
    first, second = (ladder.calibration(method=method) for method in METHODS)
    for name, calibration in ((FIRST, first), (SECOND, second)):
        seen = set()
        for budget in budgets:
            try:
                plan = calibration.plan(budget=budget, coins=coins)
            except ValueError:
                continue
            if len(plan.levels) > 1 and plan.cost not in seen:
                seen.add(plan.cost)
                found.append(planned(problem, name, plan, coins, f"budget {budget:g}", 1, random=False))
    return found


def measure(methods: Sequence[Fitted | Method], batches: Sequence[Batch]) -> list[Row]:
    """One row per method: cost, RMS, median and geometric mean error, by batch and over all."""
    rows = []
    for entry in methods:
        method, predicted, evaluations = entry if isinstance(entry, Fitted) else (entry, None, None)
        costs, errors = [], []
        for batch in batches:
            found = run(method, batch)
            apart = (found.end - batch.reference).astype(float)
            errors.append(np.sqrt(np.mean(apart.reshape(len(apart), -1) ** 2, axis=1)))
            costs.append(found.cost)
        typical = [float(np.exp(np.mean(np.log(e)))) for e in errors]
        every = np.concatenate(errors)
        row = {
            "method": method.name,
            "setting": method.setting,
            "steps": method.steps,
            "grid": method.grid,
            "multilevel": method.multilevel,
            "cost": float(np.mean(costs)),
            "error": float(np.exp(np.mean(np.log(every)))),
            "error_sd": float(np.std(typical)),
            "rms": float(np.sqrt(np.mean(every**2))),
            "median": float(np.median(every)),
            "predicted": predicted,
            "evaluations": evaluations,
            "batch_cost": costs,
            "batch_error": typical,
            "batch_rms": [float(np.sqrt(np.mean(e**2))) for e in errors],
        }
        rows.append(row)
        print(
            f"{row['method']:28s} cost {row['cost']:6.2f}  error {row['error']:.4f}  RMS {row['rms']:.4f}  "
            f"median {row['median']:.4f}  ({row['setting']})",
            flush=True,
        )
    return rows


def study(
    ladder: Ladder, steps: ml.FittedSteps, *, size: int, batches: int, rounds: int = ROUNDS, smoke: bool
) -> dict[str, Any]:
    """Measures all methods on the same fresh batches, and times them in some rounds."""
    problem = image_problem(ladder, False)
    finest, ts = Plain(problem.levels[-1], 1.0), np.asarray(ladder.config.process.grid(REFERENCE_STEPS))

    def reference(batch: Batch) -> np.ndarray:
        return np.asarray(march(DPMSolver(finest), ts, jnp.asarray(batch.y0))[0]())

    drawn = [draw(problem, jr.key(8100 + i), size, reference) for i in range(batches)]
    methods = [
        *other_methods(problem, ladder, RIVAL_STEPS[:1] if smoke else RIVAL_STEPS, BUDGETS[4:5] if smoke else BUDGETS),
        *fitted_methods(problem, steps),
        *switching(problem, ladder, steps, stepping, smoke=smoke),
    ]  # fmt: skip
    rows = measure(methods, drawn)
    plain = [entry.method if isinstance(entry, Fitted) else entry for entry in methods]
    add_seconds(rows, plain, drawn[0], repeats=rounds)
    return {
        "problem": problem.name,
        "images": size,
        "batches": batches,
        "rows": rows,
        "compared": all_compared(rows),
        "compared_seconds": all_compared(rows, unit="seconds"),
    }


def all_compared(rows: list[Row], unit: str = "batch_cost") -> list[dict[str, Any]]:
    """What methods cost at the errors of their rivals."""
    alone, theirs = rivals_of(rows, ALONE, SINGLE_STEPS), rivals_of(rows, RIVAL, RIVAL_STEPS)
    pairs = [(theirs, ALONE)]
    pairs += [(alone, method) for method in (SEVERAL, SECOND, LARGE_SMALL, LARGE_SMALL_LARGE)]
    pairs += [(theirs, SEVERAL), (rivals_of(rows, EULER, (EULER_STEPS,)), SEVERAL)]
    return [row for rivals, method in pairs for row in compared(rows, rivals, method, unit=unit)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=Path, help="a catalogue to measure, instead of fitting one")
    parser.add_argument(
        "--smoke", action="store_true", help="few images, to see that it runs; writes nothing"
    )
    arguments = parser.parse_args()
    ladder = load_ladder()
    if arguments.steps is None:
        pilots, most = (8, 2.0) if arguments.smoke else (PILOTS, 32.0)
        steps = fit_ladder_steps(ladder, pilots, most=most)
    else:
        steps = ml.FittedSteps.load(arguments.steps)
    print(steps)
    size, batches = (2, 1) if arguments.smoke else (64, 3)
    found = study(
        ladder,
        steps,
        size=size,
        batches=batches,
        rounds=1 if arguments.smoke else ROUNDS,
        smoke=arguments.smoke,
    )
    for unit in ("compared", "compared_seconds"):
        print(report(found[unit]), end="\n\n")
    print(predictions(found["rows"]))
    if arguments.smoke:
        return
    if arguments.steps is None:
        steps.save(RESULTS / "fitted_steps.npz")
    figure = draw_curves(
        [(found["problem"], best_grid(found["rows"]))],
        x="cost",
        x_label="evaluations of the finest network (FLOPs)",
        y_label="geometric mean error of an image",
    )
    save_figure(figure, RESULTS / "fitted.png")
    write_table("fitted", found["rows"])
    print("written:", write_results("fitted", found))


if __name__ == "__main__":
    main()
