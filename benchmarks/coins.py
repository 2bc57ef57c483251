"""Error against cost on the shipped UNets: every coin policy beside Euler on the finest level.

Run `python benchmarks/coins.py` (about ten minutes on two cores) or with `--quick` (about two); `--sde` for
the reverse SDE. Writes `benchmarks/results/coins_ode.json` and `.png` (`coins_sde`), `--quick` the same with
`_quick`.

The images of each batch have their own noise, which the calibration has not seen. The error is the RMS distance to a
fine solution of the finest level. Random coins are averaged over coin seeds. All policies have the same expected costs
and use the plan that the calibration makes for them (with all levels if that plan would have a single one). The
standard deviation is that over batches and coin seeds. The speed-up is the cost of Euler at the same error on the same
images, over the method's; the median over runs is printed.
"""

import argparse
from typing import Any, NamedTuple

import diffrax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _harness import RESULTS, write_results
from _methods import solve
from jaxtyping import Array
from matplotlib.figure import Figure

import mlem_jax as ml
from mlem_jax._cli.comparison import equivalent_cost
from mlem_jax._cli.comparison_runs import FINE_STEPS
from mlem_jax.diffusion import Ladder, load_ladder, reverse_diffusion
from mlem_jax.plot import save_figure

EULER = "Euler, finest level"
POLICIES = {
    "independent": ml.IndependentCoins(),
    "nested": ml.NestedCoins(),
    "stratified": ml.StratifiedCoins(),
    "systematic": ml.SystematicCoins(),
    "midpoint": ml.SystematicCoins(offset=0.5),
}


class Images(NamedTuple):
    """A batch of images: its number, the terms with its noise, initial states, and reference end states."""

    number: int
    terms: Any
    y0: Array
    reference: Array


class Run(NamedTuple):
    """The batch's number, the cost in finest-level evaluations, the RMS error over all images, and the median
    image's."""

    batch: int
    cost: float
    error: float
    median: float


class Size(NamedTuple):
    """Batches, coin seeds, images of a batch, budgets of plans, and step counts of Euler."""

    batches: int
    coin_seeds: int
    images: int
    budgets: tuple[float, ...]
    euler_steps: tuple[int, ...]


QUICK = Size(2, 2, 8, (6, 12), (8, 16, 32, 64))
FULL = Size(4, 5, 16, (4, 6, 8, 12, 16, 24), (8, 16, 32, 64, 128))
Runs = dict[tuple[str, float], list[Run]]


def multilevel_plan(calibration: ml.Calibration, coins: ml.AbstractCoins, budget: float) -> ml.Plan:
    """The calibration's plan for these coins; with all levels if it would have a single one."""
    plan = calibration.plan(budget=budget, coins=coins)
    if len(plan.levels) == 1:
        plan = calibration.plan(budget=budget, coins=coins, levels=tuple(range(calibration.num_levels)))
    return plan


def draw_images(ladder: Ladder, fine: Array, number: int, count: int, *, sde: bool) -> Images:
    """A batch with its own noise."""
    process, terms = ladder.config.process, ladder.term(sde=sde)
    noise, path = jr.split(jr.key(1000 + number))
    y0 = process.s_max * jr.normal(noise, (count, *ladder.config.shape))
    if sde:
        brownian = ml.GridBrownianPath(fine, y0.shape, key=path)
        terms = diffrax.MultiTerm(terms, reverse_diffusion(brownian))
    reference, _ = solve(terms, diffrax.Euler() if sde else diffrax.Heun(), fine, y0)
    return Images(number, terms, y0, reference)


def run(
    images: Images, terms: Any, solver: diffrax.AbstractSolver, ts: Array, cost: float | None = None
) -> Run:
    """One solve; its cost is counted if it is not given."""
    end, state = solve(terms, solver, ts, images.y0)
    if cost is None:
        cost = ml.evaluation_report(state).finest_evaluations
    squares = jnp.mean((end - images.reference) ** 2, axis=(1, 2, 3))
    rms, median = float(jnp.sqrt(jnp.mean(squares))), float(jnp.sqrt(jnp.median(squares)))
    return Run(images.number, cost, rms, median)


def study(*, sde: bool, quick: bool) -> list[dict[str, Any]]:
    """One row per method and cost: mean error, its standard deviation, mean cost, number of runs."""
    ladder, size = load_ladder(), QUICK if quick else FULL
    calibration, steps = ladder.calibration(sde=sde), FINE_STEPS[sde]
    fine = ladder.config.process.grid(steps)
    plans: dict[tuple[str, float], ml.Plan] = {
        (name, budget): multilevel_plan(calibration, coins, budget)
        for name, coins in POLICIES.items()
        for budget in size.budgets
    }
    found: Runs = {}
    for number in range(size.batches):
        images = draw_images(ladder, fine, number, size.images, sde=sde)
        for n in size.euler_steps:
            one = run(images, images.terms, diffrax.Euler(), fine[:: steps // n], n)
            found.setdefault((EULER, n), []).append(one)
        for at, plan in plans.items():
            ts = fine[:: steps // (len(plan.ts) - 1)]
            for seed in range(1 if plan.deterministic else size.coin_seeds):
                one = run(images, plan.terms(images.terms), plan.solver(key=jr.key(seed)), ts)
                found.setdefault(at, []).append(one)
        print(f"batch {number + 1} of {size.batches} done", flush=True)
    return [row_of(at, found, plans.get(at), size.euler_steps) for at in found]


def row_of(
    at: tuple[str, float], found: Runs, plan: ml.Plan | None, euler_steps: tuple[int, ...]
) -> dict[str, Any]:
    """The row of a method and a budget, or a number of steps. Each run is compared with Euler on the same images."""
    runs = found[at]
    errors = [one.error for one in runs]
    gains = []
    for one in runs:
        euler = [found[EULER, n][one.batch].error for n in euler_steps]
        gains.append(equivalent_cost(euler, list(euler_steps), one.error) / one.cost)
    return {
        "method": at[0],
        "at": at[1],
        "cost": float(np.mean([one.cost for one in runs])),
        "error": float(np.mean(errors)),
        "error_sd": float(np.std(errors, ddof=1)),
        "median_image": float(np.mean([one.median for one in runs])),
        "predicted": None if plan is None else plan.error,
        "levels": None if plan is None else [k + 1 for k in plan.levels],
        "speedup_over_euler": gains,
        "runs": len(runs),
    }


def draw(rows: list[dict[str, Any]], title: str) -> Figure:
    """Error against cost, one line per method."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        style = "k.-" if name == EULER else ".-"
        axis.errorbar(
            [row["cost"] for row in mine],
            [row["error"] for row in mine],
            yerr=[row["error_sd"] for row in mine],
            fmt=style,
            label=name,
            capsize=2,
            linewidth=1.2,
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("cost in evaluations of the finest network (FLOPs)")
    axis.set_ylabel("RMS error of a pixel (range -1 to 1)")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sde", action="store_true", help="the reverse SDE instead of the probability flow")
    parser.add_argument("--quick", action="store_true", help="fewer batches, budgets and coin seeds")
    arguments = parser.parse_args()
    name = f"coins_{'sde' if arguments.sde else 'ode'}{'_quick' if arguments.quick else ''}"
    rows = study(sde=arguments.sde, quick=arguments.quick)
    for row in rows:
        print(
            f"{row['method']:20s} cost {row['cost']:6.1f}  error {row['error']:.4f} ± {row['error_sd']:.4f}  median "
            f"image {row['median_image']:.4f}  speed-up {np.median(row['speedup_over_euler']):.1f}"
        )
    print("written:", write_results(name, {"rows": rows}))
    title = "Reverse SDE, one Brownian path" if arguments.sde else "Probability flow"
    save_figure(draw(rows, f"{title}, Fashion-MNIST UNets"), RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
