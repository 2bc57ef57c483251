"""Error against cost on the shipped UNets: every coin policy beside Euler on the finest level.

Run `python benchmarks/coins.py` (about ten minutes on two cores) or with `--quick` (about two); `--sde` for
the reverse SDE. Writes `benchmarks/results/coins_ode.json` and `.png` (`coins_sde`), `--quick` the same with
`_quick`.

For each of several batches of images (fresh noise, never the calibration's), the error is the root mean
square distance to a fine solution of the finest level. Random coins are averaged over coin seeds. All
policies have the same expected cost, each with the plan that the calibration makes for it (with all levels where
that would be one level alone). The spread is the standard deviation over batches and coin seeds. The speed-up is the
cost of Euler with the same error on the same images over the method's, by batch; printed is the median.
"""

import argparse
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _harness import RESULTS, write_results
from matplotlib.figure import Figure

import mlem_jax as ml
from mlem_jax._cli.comparison import equivalent_cost
from mlem_jax._cli.comparison_runs import FINE_STEPS
from mlem_jax.diffusion import load_ladder, reverse_diffusion
from mlem_jax.plot import save_figure

EULER = "Euler, finest level"
POLICIES = {
    "independent": ml.IndependentCoins(),
    "nested": ml.NestedCoins(),
    "stratified": ml.StratifiedCoins(),
    "systematic": ml.SystematicCoins(),
    "midpoint": ml.SystematicCoins(offset=0.5),
}


class Run(NamedTuple):
    """Which images, cost in finest evaluations, RMS error over all images, and the median image's."""

    batch: int
    cost: float
    error: float
    median: float


@eqx.filter_jit
def solve(solver: diffrax.AbstractSolver, ts: jax.Array, terms: Any, y0: jax.Array) -> tuple[Any, Any]:
    """End images and solver state."""
    sol = diffrax.diffeqsolve(
        terms,
        solver,
        ts[0],
        ts[-1],
        None,
        y0,
        stepsize_controller=diffrax.StepTo(ts),
        saveat=diffrax.SaveAt(t1=True, solver_state=True),
    )
    return sol.ys, sol.solver_state


def multilevel_plan(calibration: ml.Calibration, coins: ml.AbstractCoins, budget: float) -> ml.Plan:
    """What the calibration plans for these coins; with all levels where it would rather use one alone."""
    plan = calibration.plan(budget=budget, coins=coins)
    if len(plan.levels) == 1:
        plan = calibration.plan(budget=budget, coins=coins, levels=tuple(range(calibration.num_levels)))
    return plan


def study(*, sde: bool, quick: bool) -> list[dict[str, Any]]:
    """One row per method and cost: mean error, its standard deviation, mean cost, number of runs."""
    ladder = load_ladder()
    process, term, calibration = ladder.config.process, ladder.term(sde=sde), ladder.calibration(sde=sde)
    fine = process.grid(FINE_STEPS[sde])
    batches, coin_seeds, samples = (2, 2, 8) if quick else (4, 5, 16)
    budgets = (6, 12) if quick else (4, 6, 8, 12, 16, 24)
    euler_steps = (8, 16, 32, 64) if quick else (8, 16, 32, 64, 128)
    plans: dict[tuple[str, float], ml.Plan] = {
        (name, budget): multilevel_plan(calibration, coins, budget)
        for name, coins in POLICIES.items()
        for budget in budgets
    }
    found: dict[tuple[str, float], list[Run]] = {}
    for batch in range(batches):
        noise, path = jr.split(jr.key(1000 + batch))
        y0 = process.s_max * jr.normal(noise, (samples, *ladder.config.shape))
        terms: Any = term
        if sde:
            brownian = ml.GridBrownianPath(fine, y0.shape, key=path)
            terms = diffrax.MultiTerm(term, reverse_diffusion(brownian))
        reference = solve(diffrax.Euler() if sde else diffrax.Heun(), fine, terms, y0)[0]

        def run(name, at, solver, ts, cost=None, terms=terms, y0=y0, reference=reference, batch=batch):
            end, state = solve(solver, ts, terms, y0)
            if cost is None:
                cost = ml.evaluation_report(state).finest_evaluations
            squares = jnp.mean((end[0] - reference[0]) ** 2, axis=(1, 2, 3))
            rms, median = float(jnp.sqrt(jnp.mean(squares))), float(jnp.sqrt(jnp.median(squares)))
            found.setdefault((name, at), []).append(Run(batch, cost, rms, median))

        for steps in euler_steps:
            run(EULER, steps, diffrax.Euler(), fine[:: FINE_STEPS[sde] // steps], steps)
        for name in POLICIES:
            for budget in budgets:
                plan = plans[name, budget]
                ts = fine[:: FINE_STEPS[sde] // (len(plan.ts) - 1)]
                for seed in range(1 if name == "midpoint" else coin_seeds):
                    run(name, budget, plan.solver(key=jr.key(seed)), ts, terms=plan.terms(terms))
        print(f"batch {batch + 1} of {batches} done", flush=True)
    rows = []
    for (name, at), runs in found.items():
        errors = [run.error for run in runs]
        # Each run against Euler on the same images.
        gains = [
            equivalent_cost(
                [found[EULER, n][run.batch].error for n in euler_steps], list(euler_steps), run.error
            )
            / run.cost
            for run in runs
        ]
        plan = plans.get((name, at))
        rows.append(
            {
                "method": name,
                "at": at,
                "cost": float(np.mean([run.cost for run in runs])),
                "error": float(np.mean(errors)),
                "error_sd": float(np.std(errors, ddof=1)),
                "median_image": float(np.mean([run.median for run in runs])),
                "predicted": None if plan is None else plan.error,
                "levels": None if plan is None else [k + 1 for k in plan.levels],
                "speedup_over_euler": gains,
                "runs": len(runs),
            }
        )
    return rows


def draw(rows: list[dict[str, Any]], title: str) -> Figure:
    """Error against cost, one line per method."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        style = "k.-" if name.startswith("Euler") else ".-"
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
