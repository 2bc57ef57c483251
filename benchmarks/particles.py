"""Study 4: particles. Error against cost where the levels are forces and nothing is a network.

Run `python benchmarks/particles.py --quick` (or `--full`; `--smoke` for the tests). Writes
`benchmarks/results/particles_quick.json`, `.csv` and `.png` (`particles_full`).

The system of `notebooks/particles.py`: 512 charged beads on 16 rings, stiff springs, thermal noise. Euler on all pairs
and on the middle level, diffrax's SEA and ShARK, a cheap level with its last difference to all pairs held (the
settings that no cheaper one beats on other noise), and plans with the midpoint pattern and with the paper's
independent coins, all with the same initial states and Brownian paths. Errors are distances to ShARK on all pairs with
twice the finest steps compared. Mean and spread over three batches of initial states and noise, for independent coins
over 4 coin seeds too.
"""

import argparse
from typing import Any, NamedTuple

import jax.random as jr
from _curves import by_method, costs_to_reach, draw_curves, markdown, Row, summary
from _harness import add_sizes, RESULTS, write_results, write_table
from _image_methods import planned
from _methods import Method, Shared
from _particles import draw_particles, initial_states, OneTrajectory, particles, rivals
from _runs import add_seconds, measure, tune

import mlem_jax as ml
from mlem_jax.plot import save_figure

BASELINE = "Euler, all pairs"
OURS, INDEPENDENT = "ML-EM, midpoint plan", "ML-EM, independent coins"


class Size(NamedTuple):
    """Rings to a side, beads of a ring; steps of the calibration's grid, of which the reference takes twice as many;
    pilots; trajectories of a batch, batches, coin seeds, rounds of timing; settings tried: steps of Euler and of
    higher order, intervals to hold, budgets; the steps of Euler whose errors are targets."""

    rings: int
    beads: int
    finest: int
    pilots: int
    trajectories: int
    batches: int
    coin_seeds: int
    rounds: int
    steps: tuple[int, ...]
    stages: tuple[int, ...]
    intervals: tuple[int, ...]
    budgets: tuple[float, ...]
    targets: tuple[int, ...]


SIZES = {
    "smoke": Size(2, 6, 64, 4, 2, 1, 1, 1, (64,), (64,), (2,), (24.0,), (64,)),
    "quick": Size(
        4,
        32,
        240,
        16,
        4,
        3,
        4,
        2,
        (60, 80, 120, 240),
        (60, 80, 120),
        (4, 8, 16, 32),
        (3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 25.0, 60.0),
        (60, 120, 240),
    ),
    "full": Size(
        4,
        32,
        480,
        64,
        16,
        6,
        8,
        5,
        (60, 80, 120, 160, 240, 480),
        (60, 80, 120, 160, 240),
        (2, 4, 8, 16, 32, 64),
        (3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 25.0, 40.0, 60.0, 100.0),
        (60, 120, 240, 480),
    ),
}


def plans(
    problem: Shared, calibration: ml.Calibration, budgets: tuple[float, ...]
) -> list[tuple[Method, ml.Plan]]:
    """Those of several levels, within each budget."""
    found = []
    for name, coins in ((OURS, ml.SystematicCoins(offset=0.5)), (INDEPENDENT, ml.IndependentCoins())):
        for budget in budgets:
            try:
                plan = calibration.plan(budget=budget, coins=coins)
            except ValueError:
                # Too small for the fewest steps of the cheapest level.
                continue
            if len(plan.levels) > 1:
                setting = (
                    f"budget {budget:g}, levels {[k + 1 for k in plan.levels]}, {len(plan.ts) - 1} steps"
                )
                random = name == INDEPENDENT
                found.append((planned(problem, name, plan, coins, setting, 1, random=random), plan))
    return found


def study(size: Size) -> dict[str, Any]:
    """Calibration, runs, and what each method costs at the errors of Euler on all pairs."""
    problem = particles(size.rings, size.beads, 2 * size.finest)

    def states(seed: int, count: int) -> Any:
        return initial_states(jr.key(seed), size.rings, size.beads, count)

    one = OneTrajectory(problem.levels, problem.ts[::2], problem.costs, problem.shape)
    pilots = states(0, size.pilots)
    calibration = ml.calibrate(one, one.ts, pilots, key=jr.key(1), progress=False)
    print(calibration, flush=True)
    tuning, *batches = (
        draw_particles(problem, jr.key(300 + i), states(200 + i, size.trajectories))
        for i in range(size.batches + 1)
    )
    mine = plans(problem, calibration, size.budgets)
    methods, _ = tune(rivals(problem, size.steps, size.stages, size.intervals), tuning, coin_seeds=1)
    methods += [method for method, _ in mine]
    rows = measure(methods, batches, coin_seeds=size.coin_seeds)
    add_seconds(rows, methods, batches[0], repeats=size.rounds)
    predicted = {(method.name, method.setting): plan.error for method, plan in mine}
    for row in rows:
        row["predicted"] = predicted.get((row["method"], row["setting"]))
        print(
            f"{row['method']:26s} cost {row['cost']:6.2f}  {row['seconds']:6.3f} s  error {row['error']:.4f} ± "
            f"{row['error_sd']:.4f}  ({row['setting']})",
            flush=True,
        )
    return {
        "trajectories": size.trajectories,
        "relative_costs": list(problem.costs),
        "calibration": str(calibration),
        "rows": rows,
        "reach": reach(rows, size.targets),
    }


def reach(rows: list[Row], targets: tuple[int, ...]) -> list[Row]:
    """What each method costs at the error of Euler on all pairs with a given number of steps, batch by batch."""
    table = []
    for row in by_method(rows).get(BASELINE, []):
        steps = row["steps"]
        if steps not in targets:
            continue
        evaluations = costs_to_reach(rows, row["batch_error"])
        seconds = costs_to_reach(rows, row["batch_error"], "seconds")
        for name in evaluations:
            table.append(
                {
                    "euler_steps": steps,
                    "error": row["error"],
                    "method": name,
                    "evaluations": summary(evaluations[name]),
                    "fewer_evaluations": summary(steps / evaluations[name]),
                    "seconds": summary(seconds[name]),
                    "fewer_seconds": summary(row["seconds"] / seconds[name]),
                }
            )
    return table


def report(table: list[Row]) -> str:
    """Evaluations, and how many times fewer than Euler's; seconds likewise."""

    def shown(row: Row, unit: str) -> str:
        value, ratio = row[unit]["median"], row[f"fewer_{unit}"]["median"]
        return "not reached" if value is None else f"{value:.2f} ({ratio:.1f} times fewer)"

    return markdown(
        ["at the error of", "error", "method", "evaluations", "seconds"],
        [
            [
                f"Euler, {row['euler_steps']} steps",
                f"{row['error']:.4f}",
                row["method"],
                shown(row, "evaluations"),
                shown(row, "seconds"),
            ]
            for row in table
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_sizes(parser)
    size = parser.parse_args().size
    found = study(SIZES[size])
    print(report(found["reach"]))
    if size == "smoke":
        return
    stem = f"particles_{size}"
    panels = [("512 particles, Langevin dynamics", found["rows"])]
    figure = draw_curves(
        panels, x="cost", x_label="evaluations of all pairs (FLOPs)", y_label="RMS error of a coordinate"
    )
    save_figure(figure, RESULTS / f"{stem}.png")
    write_table(stem, found["rows"])
    print("written:", write_results(stem, found))


if __name__ == "__main__":
    main()
