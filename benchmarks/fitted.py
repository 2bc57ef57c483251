"""Study 9: what do several levels bring beside a single network whose steps are fitted just as hard?

Run `python benchmarks/fitted.py` (`--smoke` for a look: few images, nothing written).
`--steps FILE` takes a catalogue that an earlier run wrote, `results/fitted_steps.npz`, instead of fitting a new one.
Writes `benchmarks/results/fitted.json`, the table `fitted.csv` and a picture of the curves.

`mlem_jax.fit_steps` makes the catalogue for the shipped ladder (probability flow) on 64 pilots. On fresh noise, three
batches of 64 images, against DPM-Solver++(2M) with 128 steps: DPM-Solver++(2M), the finest network alone with fitted
steps, several levels with fitted steps, and today's plans of either order. Errors are the geometric mean of the
images' own; RMS, which one or two images that end elsewhere decide, stands beside it. The costs of a method at a given
error are those of its curve of error against cost, for each batch on its own; median and range over batches.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _curves import cost_at, draw_curves, markdown, Row, summary
from _harness import RESULTS, write_results, write_table
from _image_methods import image_problem, planned
from _methods import Batch, draw, marching, Method, multilevel, run, Shared
from _rivals import DPMSolver, march, Plain

import mlem_jax as ml
from mlem_jax.diffusion import Ladder, load_ladder
from mlem_jax.diffusion._ladder import METHODS
from mlem_jax.plot import save_figure

RIVAL = "DPM-Solver++(2M)"
ALONE, SEVERAL = "finest alone, fitted", "several levels, fitted"
FIRST, SECOND = "MLEM, planned", "MLAB2, planned"
RIVAL_STEPS = (6, 8, 10, 14)
SINGLE_STEPS = (4, 5, 6, 8, 10)
BUDGETS = (2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0)
REFERENCE_STEPS, PILOTS, FINE = 128, 64, 128


def fit(ladder: Ladder, *, pilots: int, most: float) -> ml.FittedSteps:
    """The catalogue for the probability flow."""
    process = ladder.config.process
    y0s = process.s_max * jr.normal(jr.key(5), (pilots, *ladder.config.shape))
    ts = process.grid(FINE)
    return ml.fit_steps(ladder.term(), ts, y0s, key=jr.key(0), time_variable="log", most=most)


def fitted_methods(problem: Shared, steps: ml.FittedSteps) -> list[Method]:
    """All entries of the catalogue that are the finest level alone, and all of several levels."""
    finest = len(problem.levels) - 1
    found = []
    for levels, coefficients in zip(steps.levels, steps.coefficients, strict=True):
        if levels[-1] != finest:
            continue
        counts = ", ".join(
            f"{k + 1}: {n}" for k, n in zip(levels, coefficients.evaluations.tolist(), strict=True)
        )
        setting = f"{len(coefficients.ts) - 1} steps, evaluations {counts}"
        name = ALONE if len(levels) == 1 else SEVERAL
        solver = ml.LinearMultistep(coefficients)
        found.append(
            multilevel(problem, name, setting, lambda key, s=solver: s, coefficients.ts, levels, random=False)
        )
    return found


def other_methods(
    problem: Shared, ladder: Ladder, steps: Sequence[int], budgets: Sequence[float]
) -> list[Method]:
    """DPM-Solver++(2M) on two grids, and today's plans."""
    rival, found = DPMSolver(Plain(problem.levels[-1], 1.0)), []
    for spacing in ("karras", "log"):
        for n in steps:
            ts = np.asarray(ladder.config.process.grid(n, spacing=spacing))
            found.append(marching(RIVAL, f"{n} steps, {spacing}", rival, ts))
    coins = ml.SystematicCoins(offset=0.5)
    first, second = (ladder.calibration(method=method) for method in METHODS)
    for name, calibration in ((FIRST, first), (SECOND, second)):
        seen = set()
        for budget in budgets:
            try:
                plan = calibration.plan(budget=budget)
            except ValueError:
                continue
            if len(plan.levels) > 1 and plan.cost not in seen:
                seen.add(plan.cost)
                found.append(planned(problem, name, plan, coins, f"budget {budget:g}", 1, random=False))
    return found


def measure(methods: Sequence[Method], batches: Sequence[Batch]) -> list[Row]:
    """One row per method: cost, RMS and geometric mean error, by batch and over all."""
    rows = []
    for method in methods:
        costs, errors = [], []
        for batch in batches:
            found = run(method, batch)
            apart = (found.end - batch.reference).astype(float)
            errors.append(np.sqrt(np.mean(apart.reshape(len(apart), -1) ** 2, axis=1)))
            costs.append(found.cost)
        typical = [float(np.exp(np.mean(np.log(e)))) for e in errors]
        every = np.concatenate(errors)
        rows.append(
            {
                "method": method.name,
                "setting": method.setting,
                "cost": float(np.mean(costs)),
                "error": float(np.exp(np.mean(np.log(every)))),
                "rms": float(np.sqrt(np.mean(every**2))),
                "median": float(np.median(every)),
                "batch_cost": costs,
                "batch_error": typical,
            }
        )
        row = rows[-1]
        print(f"{row['method']:24s} cost {row['cost']:6.2f}  error {row['error']:.4f}  RMS {row['rms']:.4f}  "
              f"({row['setting']})", flush=True)  # fmt: skip
    return rows


def compared(rows: Sequence[Row], rivals: Sequence[Row], method: str) -> list[dict[str, Any]]:
    """For each rival's row what a method needs for the same geometric mean error, batch by batch."""
    mine, table = [row for row in rows if row["method"] == method], []
    for rival in rivals:
        needed = []
        for i, error in enumerate(rival["batch_error"]):
            needed.append(
                cost_at(
                    [row["batch_cost"][i] for row in mine], [row["batch_error"][i] for row in mine], error
                )
            )
        table.append(
            {
                "rival": f"{rival['method']}, {rival['setting']}",
                "rival_cost": rival["cost"],
                "error": rival["error"],
                "method": method,
                "cost": summary(np.array(needed)),
                "times_fewer": summary(rival["cost"] / np.array(needed)),
            }
        )
    return table


def rivals_of(rows: Sequence[Row], name: str, counts: Sequence[int]) -> list[Row]:
    """For each number of steps the row with the smallest error, whatever its grid."""
    found = []
    for count in counts:
        mine = [row for row in rows if row["method"] == name and row["setting"].startswith(f"{count} steps")]
        if mine:
            found.append(min(mine, key=lambda row: row["error"]))
    return found


def report(table: Sequence[dict[str, Any]]) -> str:
    """The comparison as a table."""

    def told(found: dict[str, float | None]) -> str:
        middle, least, most = (found[name] for name in ("median", "min", "max"))
        if middle is None:
            return "not reached"
        return f"{middle:.2f} ({0 if least is None else least:.2f} to {'never' if most is None else f'{most:.2f}'})"

    lines = [
        [row["rival"], f"{row['error']:.4f}", row["method"], told(row["cost"]), told(row["times_fewer"])]
        for row in table
    ]
    return markdown(["at the error of", "error", "method", "evaluations", "times fewer"], lines)


def study(ladder: Ladder, steps: ml.FittedSteps, *, size: int, batches: int, smoke: bool) -> dict[str, Any]:
    """Measures all methods on the same fresh batches."""
    problem = image_problem(ladder, False)
    finest, ts = Plain(problem.levels[-1], 1.0), np.asarray(ladder.config.process.grid(REFERENCE_STEPS))

    def reference(batch: Batch) -> np.ndarray:
        return np.asarray(march(DPMSolver(finest), ts, jnp.asarray(batch.y0))[0]())

    drawn = [draw(problem, jr.key(8100 + i), size, reference) for i in range(batches)]
    methods = [
        *other_methods(problem, ladder, RIVAL_STEPS[:1] if smoke else RIVAL_STEPS, BUDGETS[4:5] if smoke else BUDGETS),
        *fitted_methods(problem, steps),
    ]  # fmt: skip
    rows = measure(methods, drawn)
    table = compared(rows, rivals_of(rows, RIVAL, RIVAL_STEPS), ALONE)
    table += compared(rows, rivals_of(rows, ALONE, SINGLE_STEPS), SEVERAL)
    table += compared(rows, rivals_of(rows, ALONE, SINGLE_STEPS), SECOND)
    table += compared(rows, rivals_of(rows, RIVAL, RIVAL_STEPS), SEVERAL)
    return {"problem": problem.name, "images": size, "batches": batches, "rows": rows, "compared": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=Path, help="a catalogue to measure, instead of fitting one")
    parser.add_argument(
        "--smoke", action="store_true", help="few images, to see that it runs; writes nothing"
    )
    arguments = parser.parse_args()
    ladder = load_ladder()
    if arguments.steps is None:
        steps = fit(ladder, pilots=8 if arguments.smoke else PILOTS, most=2.0 if arguments.smoke else 12.0)
    else:
        steps = ml.FittedSteps.load(arguments.steps)
    print(steps)
    size, batches = (2, 1) if arguments.smoke else (64, 3)
    found = study(ladder, steps, size=size, batches=batches, smoke=arguments.smoke)
    print(report(found["compared"]))
    if arguments.smoke:
        return
    if arguments.steps is None:
        steps.save(RESULTS / "fitted_steps.npz")
    figure = draw_curves(
        [(found["problem"], found["rows"])],
        x="cost",
        x_label="evaluations of the finest network (FLOPs)",
        y_label="geometric mean error of an image",
    )
    save_figure(figure, RESULTS / "fitted.png")
    write_table("fitted", found["rows"])
    print("written:", write_results("fitted", found))


if __name__ == "__main__":
    main()
