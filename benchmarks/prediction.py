"""Predicted and measured errors of plans, on fresh states, noise and coins.

Run `python benchmarks/prediction.py` (about ten minutes on two cores), or with `--quick` the random-feature
hierarchies only (about two). Writes `benchmarks/results/prediction.json` (`prediction_quick.json`).

Each problem is calibrated once. Then a plan for each policy and budget is solved on fresh initial states, Brownian
paths and coins, and the distance to an accurate solution of the finest level is measured. Plans with a single level are
included. Random coins are averaged over coin seeds.
"""

import argparse
import time
from typing import Any

import diffrax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _harness import write_results
from _problems import ends, images, PlannedTerms, Problem, random_features

import mlem_jax as ml
from mlem_jax.diffusion import load_ladder

POLICIES: dict[str, ml.AbstractCoins] = {
    "independent": ml.IndependentCoins(),
    "stratified": ml.StratifiedCoins(),
    "systematic": ml.SystematicCoins(),
    "midpoint": ml.SystematicCoins(offset=0.5),
}
BUDGETS = (2.0, 4.0, 8.0, 16.0, 32.0)


def solve(make_terms: Any, solver: Any, ts: Any, ys: Any, noise: Any) -> Any:
    """End states and solver state."""
    return ends(solver, make_terms, jnp.asarray(ts, jnp.result_type(float)), ys, None, noise)


def study(problem: Problem, *, pilots: int, fresh: int, coin_seeds: int) -> list[dict[str, Any]]:
    """One row per policy and budget."""
    keys = jr.split(jr.key(2026), 4)
    start = time.perf_counter()
    calibration = ml.calibrate(
        problem.make_terms, problem.ts, problem.draw(keys[0], pilots), key=keys[1], progress=False
    )
    seconds = time.perf_counter() - start
    print(f"{problem.name}: calibrated in {seconds:.0f} s", flush=True)
    ys, noise = problem.draw(keys[2], fresh), jr.split(keys[3], fresh)
    fine, _ = solve(problem.make_terms, diffrax.Euler(), problem.ts, ys, noise)
    half, _ = solve(problem.make_terms, diffrax.Euler(), problem.ts[::2], ys, noise)
    # Richardson extrapolation: both problems converge at first order along a path.
    reference = 2 * fine - half
    rows = []
    for name, coins in POLICIES.items():
        for budget in BUDGETS:
            try:
                plan = calibration.plan(budget=budget, coins=coins)
            except ValueError as error:
                print(f"  {name} {budget}: {error}")
                continue
            errors, costs = [], []
            kept = PlannedTerms(problem.make_terms, plan.levels, tuple(plan.costs.tolist()))
            for seed in range(1 if plan.deterministic else coin_seeds):
                end, state = solve(kept, plan.solver(key=jr.key(seed)), plan.ts, ys, noise)
                errors.append(float(jnp.sqrt(jnp.mean((end - reference) ** 2))))
                costs.append(plan.cost if state is None else ml.evaluation_report(state).finest_evaluations)
            measured = float(np.sqrt(np.mean(np.square(errors))))
            rows.append(
                {
                    "problem": problem.name,
                    "coins": name,
                    "budget": budget,
                    "levels": [k + 1 for k in plan.levels],
                    "steps": len(plan.ts) - 1,
                    "cost": float(np.mean(costs)),
                    "predicted": plan.error,
                    "predicted_spread": plan.relative_error_of_prediction,
                    "measured": measured,
                    "ratio": measured / plan.error,
                    "coin_seeds": len(errors),
                    "nonlinearity": plan.nonlinearity,
                    "speedup_over_finest": plan.speedup_over_finest,
                    "calibration_seconds": seconds,
                    "advice": list(plan.advice),
                }
            )
            row = rows[-1]
            print(
                f"  {name:12s} budget {budget:4.0f}  levels {row['levels']} steps {row['steps']:4d}  cost "
                f"{row['cost']:5.1f}  predicted {plan.error:.4f}  measured {measured:.4f}  ratio "
                f"{row['ratio']:.2f}",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="random features only")
    arguments = parser.parse_args()
    rows = study(random_features(gamma=2.5), pilots=64, fresh=256, coin_seeds=8)
    rows += study(random_features(gamma=2.5, sde=True), pilots=64, fresh=256, coin_seeds=8)
    if not arguments.quick:
        rows += study(images(load_ladder()), pilots=32, fresh=64, coin_seeds=4)
    within = [row for row in rows if abs(np.log(row["ratio"])) <= np.log(1.25)]
    print(f"{len(within)} of {len(rows)} within 25%")
    name = f"prediction{'_quick' if arguments.quick else ''}"
    print("written:", write_results(name, {"rows": rows, "within_25_percent": len(within)}))


if __name__ == "__main__":
    main()
