"""Study 7: is the multilevel method cheaper than DPM-Solver++(2M) on the finest network, in evaluations and in seconds?

Run `python benchmarks/frontier.py` (about a quarter of an hour on two cores; `--smoke` for the tests, `--sde` for the
reverse SDE). Writes `benchmarks/results/frontier_ode.json` (`_sde`) and a picture of the curves.

Target errors are those of DPM-Solver++(2M) with 6, 8, 10, 14 and 20 evaluations of the finest network, and of Euler
with 50 steps (100 for the SDE), on fresh noise. The study measures how many finest-level evaluations (FLOPs) and
seconds the plans of the shipped calibrations need for them. Each rival has the better of Karras' and the logarithmic
grid for each number of steps, chosen after the runs. Plans are made before the runs: of first order (MLEM) and of
second order (MLAB2) with FLOPs as the levels' costs, and the better of the two with the calibrations' seconds; likewise
those of fitted steps, where the finest network alone with fitted steps is one of the rivals. The cost of the plans at a
given error is interpolated on their curve of error against cost over budgets, for each batch separately; reported are
the median and the range over three batches of 64 images. Seconds are medians of interleaved runs on one batch, without
compilation.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.random as jr
import numpy as np
from _curves import best_grid, costs_to_reach, draw_curves, markdown, Row, summary
from _fitted_methods import ALONE_FITTED, fitted_steps, stepping
from _harness import RESULTS, write_results
from _image_methods import image_problem, planned, references
from _methods import Batch, draw, Method, on_grids, Shared
from _rivals import DPMSolver, Euler, Plain, SDEDPMSolver
from _runs import add_seconds, measure

import mlem_jax as ml
from mlem_jax.diffusion import calibrate_ladder, Ladder, load_ladder
from mlem_jax.diffusion._ladder import METHODS
from mlem_jax.plot import save_figure

GRIDS = ("karras", "log")
RIVAL_STEPS = (6, 8, 10, 14, 20)
EULER_STEPS = {False: (50,), True: (100,)}
BUDGETS = (2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 14.0, 17.0, 20.0, 25.0)
OURS = ("MLEM, planned in FLOPs", "MLAB2, planned in FLOPs", "either, planned in seconds")
FITTED = ("fitted, planned in FLOPs", "fitted, planned in seconds")
MIDPOINT = ml.SystematicCoins(offset=0.5)


def rivals(ladder: Ladder, problem: Shared, steps: Sequence[int]) -> list[Method]:
    """The finest network alone, on two grids."""
    finest, sde, process = (
        Plain(problem.levels[-1], 1.0),
        problem.diffusion is not None,
        ladder.config.process,
    )
    multistep = SDEDPMSolver(finest) if sde else DPMSolver(finest)
    name = "SDE-DPM-Solver++(2M)" if sde else "DPM-Solver++(2M)"
    return [
        *on_grids(name, multistep, process, steps, GRIDS),
        *on_grids("Euler", Euler(finest, problem.diffusion), process, EULER_STEPS[sde], GRIDS),
    ]


def ours(
    problem: Shared, ladder: Ladder, budgets: Sequence[float]
) -> tuple[list[Method], dict[str, ml.Plan | ml.FittedPlan]]:
    """Plans of several budgets. With coins: those of each order with FLOPs as costs, and the better of both with
    seconds. Fitted steps, where the ladder has them: with FLOPs and with seconds."""
    sde = problem.diffusion is not None
    first, second = (partial(ladder.calibration(sde=sde, method=m).plan, coins=MIDPOINT) for m in METHODS)
    makers: dict[str, Callable[..., ml.Plan | ml.FittedPlan]] = dict(
        zip(
            OURS, (first, second, partial(ladder.plan, sde=sde, coins=MIDPOINT, in_seconds=True)), strict=True
        )
    )
    catalogue = ladder.calibration(sde=sde, method=METHODS[1]).fitted
    if catalogue is not None:
        makers |= {FITTED[0]: catalogue.plan, FITTED[1]: partial(catalogue.plan, in_seconds=True)}
    methods, plans = [], {}
    for name, make in makers.items():
        for budget in budgets:
            try:
                plan = make(budget=budget)
            except ValueError:
                continue
            firings = ", ".join(
                f"{k + 1}: {n:.1f}" for k, n in zip(plan.levels, plan.expected_firings, strict=True)
            )
            setting = f"{len(plan.ts) - 1} steps, firings {firings}"
            if isinstance(plan, ml.Plan):
                setting = f"order {plan.method.order}, {setting}"
            if f"{name}, {setting}" in plans:
                continue
            plans[f"{name}, {setting}"] = plan
            if isinstance(plan, ml.Plan):
                methods.append(planned(problem, name, plan, MIDPOINT, setting, 1, random=False))
            else:
                method = stepping(problem, name, plan.levels, plan.coefficients)
                methods.append(method._replace(setting=setting))
    return methods, plans


def alone(problem: Shared, ladder: Ladder) -> list[Method]:
    """The finest network alone with fitted steps, where the ladder has them."""
    return [method for method in fitted_steps(problem, ladder) if method.name == ALONE_FITTED]


def compared(rivals: list[Row], rows: list[Row]) -> list[dict[str, Any]]:
    """The cost of the plans at the error of each rival, for each batch."""
    table = []
    for rival in rivals:
        targets = rival["batch_error"]
        evaluations, seconds = costs_to_reach(rows, targets), costs_to_reach(rows, targets, "seconds")
        for method in evaluations:
            table.append(
                {
                    "rival": rival["method"],
                    "setting": rival["setting"],
                    "rival_cost": rival["cost"],
                    "rival_seconds": rival["seconds"],
                    "error": rival["error"],
                    "method": method,
                    "cost": float(np.mean(evaluations[method])),
                    "fewer_evaluations": summary(rival["cost"] / evaluations[method]),
                    "seconds": float(np.mean(seconds[method])),
                    "fewer_seconds": summary(rival["seconds"] / seconds[method]),
                }
            )
    return table


def with_second_order(ladder: Ladder, sde: bool) -> Ladder:
    """The ladder with a calibration of second order. If none is shipped, it is measured, which takes five minutes."""
    kind = "sde_2" if sde else "ode_2"
    if kind in ladder.calibrations:
        return ladder
    measured = calibrate_ladder(ladder, sde=sde, method=METHODS[1], pilots=128)
    return dataclasses.replace(ladder, calibrations={**ladder.calibrations, kind: measured})


def study(ladder: Ladder, *, sde: bool, size: int, batches: int, smoke: bool = False) -> dict[str, Any]:
    """Measures all methods on the same fresh batches."""
    problem = image_problem(ladder, sde)

    def reference(batch: Batch) -> np.ndarray:
        return np.asarray(references(problem, batch)[0])

    drawn = [draw(problem, jr.key(7100 + i), size, reference) for i in range(batches)]
    multilevel, plans = ours(problem, ladder, BUDGETS[4:5] if smoke else BUDGETS)
    single = rivals(ladder, problem, RIVAL_STEPS[:1] if smoke else RIVAL_STEPS)
    methods = [*single, *alone(problem, ladder)[: 1 if smoke else None], *multilevel]
    rows = measure(methods, drawn, coin_seeds=1)
    add_seconds(rows, methods, drawn[0], repeats=1 if smoke else 5)
    for row in rows:
        plan = plans.get(f"{row['method']}, {row['setting']}")
        row["predicted"] = None if plan is None else plan.error
        print(
            f"{row['method']:24s} cost {row['cost']:6.2f}  {row['seconds']:6.3f} s  error {row['error']:.4f} ± "
            f"{row['error_sd']:.4f}  ({row['setting']})",
            flush=True,
        )
    theirs = [row for row in rows if row["method"] not in OURS + FITTED]
    mine = [row for row in rows if row["method"] in OURS + FITTED]
    return {
        "problem": problem.name,
        "images": size,
        "rows": rows,
        "compared": compared(best_grid(theirs), mine),
    }


def report(table: list[dict[str, Any]]) -> str:
    """The comparison as a table."""

    def ratio(found: dict[str, float | None]) -> str:
        middle, least, most = (found[name] for name in ("median", "min", "max"))
        if middle is None:
            return "not reached"
        return f"{middle:.2f} ({0 if least is None else least:.2f} to {most:.2f})"

    header = ["rival", "error", "ours", "evaluations", "times fewer", "times fewer seconds"]
    lines = [
        [
            f"{row['rival']}, {row['setting']}",
            f"{row['error']:.4f}",
            row["method"],
            f"{row['cost']:.2f}",
            ratio(row["fewer_evaluations"]),
            ratio(row["fewer_seconds"]),
        ]
        for row in table
    ]
    return markdown(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sde", action="store_true", help="the reverse SDE instead of the probability flow")
    parser.add_argument(
        "--smoke", action="store_true", help="two images, to see that it runs; writes nothing"
    )
    arguments = parser.parse_args()
    size, batches = (2, 1) if arguments.smoke else (64, 3)
    ladder = with_second_order(load_ladder(), arguments.sde)
    found = study(ladder, sde=arguments.sde, size=size, batches=batches, smoke=arguments.smoke)
    print(report(found["compared"]))
    if arguments.smoke:
        return
    stem = f"frontier_{'sde' if arguments.sde else 'ode'}"
    mine = [row for row in found["rows"] if row["method"] in OURS + FITTED]
    rows = [*best_grid([row for row in found["rows"] if row["method"] not in OURS + FITTED]), *mine]
    for unit, label in (("cost", "evaluations of the finest network (FLOPs)"), ("seconds", "seconds")):
        figure = draw_curves(
            [(found["problem"], rows)], x=unit, x_label=label, y_label="RMS error of a pixel"
        )
        save_figure(figure, RESULTS / f"{stem}_{unit}.png")
    print("written:", write_results(stem, found))


if __name__ == "__main__":
    main()
