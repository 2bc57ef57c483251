"""Study 10: fitted steps for problems other than images, on few pilots.

Run `python benchmarks/fitted_problems.py` (`--smoke` is a test that writes nothing). Writes
`benchmarks/results/fitted_problems.json` and `fitted_problems.csv`.

Random-feature hierarchies (`_problems.py`; an ODE, and an SDE with additive noise) and charged particles with thermal
noise (`_particles.py`), 32 pilots each. `mlem_jax.fit_steps` fits a catalogue; within each budget its plan is compared
on fresh states and noise with the same steps and classical coefficients (Adams-Bashforth, increments held), and with
the plan with coins of the same cost. Errors are geometric means over trajectories.
"""

import argparse
import time
from typing import Any

import diffrax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _harness import write_results, write_table
from _particles import initial_states, OneTrajectory, particles
from _problems import ends, PlannedTerms, Problem, random_features

import mlem_jax as ml

BUDGETS = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
PILOTS, FRESH = 32, 128
COINS = ml.SystematicCoins(offset=0.5)


def particle_problem(steps: int) -> Problem:
    """The system of `particles.py`, smaller: 4 rings of 16 beads."""
    shared = particles(2, 16, steps)
    terms = OneTrajectory(shared.levels, shared.ts, shared.costs, shared.shape)
    return Problem("particles", terms, shared.ts, lambda key, n: initial_states(key, 2, 16, n))


def classical(table: ml.MultistepCoefficients) -> ml.MultistepCoefficients:
    """The classical coefficients of the same steps and evaluations."""
    evaluated = [np.flatnonzero(column).tolist() for column in np.asarray(table.evaluated).T]
    return ml.MultistepCoefficients.adams_bashforth(
        np.asarray(table.ts), num_levels=table.num_levels, evaluated=evaluated
    )


def study(
    problem: Problem, *, pilots: int, fresh: int, budgets: tuple[float, ...], most: float
) -> list[dict[str, Any]]:
    """One row for each budget."""
    keys = jr.split(jr.key(2027), 5)
    start = time.perf_counter()
    y0s = problem.draw(keys[0], pilots)
    steps = ml.fit_steps(
        problem.make_terms, np.asarray(problem.ts, float), y0s, key=keys[1], most=most, progress=False
    )
    seconds = time.perf_counter() - start
    print(f"{problem.name}: fitted in {seconds:.0f} s\n{steps}", flush=True)
    calibration = ml.calibrate(problem.make_terms, problem.ts, y0s, key=keys[2], progress=False)
    ys, noise = problem.draw(keys[3], fresh), jr.split(keys[4], fresh)

    def solve(make_terms: Any, solver: Any, ts: Any) -> np.ndarray:
        times = jnp.asarray(ts, jnp.result_type(float))
        return np.asarray(ends(solver, make_terms, times, ys, None, noise)[0], float)

    # Richardson's extrapolation: first order on a path, as in prediction.py.
    fine, half = (solve(problem.make_terms, diffrax.Euler(), problem.ts[::n]) for n in (1, 2))
    reference = 2 * fine - half

    def error(make_terms: Any, solver: Any, ts: Any) -> float:
        apart = (solve(make_terms, solver, ts) - reference).reshape(fresh, -1)
        return float(np.exp(np.mean(np.log(np.sqrt(np.mean(apart**2, axis=1))))))

    rows = []
    for budget in budgets:
        plan = steps.plan(budget=budget)
        kept = PlannedTerms(problem.make_terms, plan.levels, tuple(plan.costs.tolist()))
        row: dict[str, Any] = {
            "problem": problem.name,
            "budget": budget,
            "cost": plan.cost,
            "levels": [k + 1 for k in plan.levels],
            "fitted_coefficients": plan.fitted,
            "predicted": plan.typical_error,
            "fitted": error(kept, plan.solver(), plan.ts),
            "classical": error(kept, ml.LinearMultistep(classical(plan.coefficients)), plan.ts),
        }
        try:
            other = calibration.plan(budget=plan.cost, coins=COINS)
            kept = PlannedTerms(problem.make_terms, other.levels, tuple(other.costs.tolist()))
            row["coins"] = error(kept, other.solver(key=jr.key(0)), other.ts)
        except ValueError:
            row["coins"] = None
        rows.append(row)
        coins = "none" if row["coins"] is None else f"{row['coins']:.4f}"
        print(
            f"  budget {budget:4.0f}  cost {plan.cost:6.2f}  levels {row['levels']}  predicted {row['predicted']:.4f}  "
            f"fitted {row['fitted']:.4f}  classical {row['classical']:.4f}  coins {coins}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--smoke", action="store_true", help="a small problem, to see that it runs; writes nothing"
    )
    smoke = parser.parse_args().smoke
    if smoke:
        study(random_features(gamma=2.5, num_levels=2, steps=32), pilots=8, fresh=8, budgets=(2.0,), most=2.0)
        return
    rows = []
    for problem in (random_features(gamma=2.5), random_features(gamma=2.5, sde=True), particle_problem(256)):
        rows += study(problem, pilots=PILOTS, fresh=FRESH, budgets=BUDGETS, most=BUDGETS[-1])
    worse = [row for row in rows if row["fitted"] > 1.05 * row["classical"]]
    better = [row for row in rows if row["classical"] > 1.2 * row["fitted"]]
    print(f"{len(worse)} of {len(rows)} worse than classical by more than 5%; {len(better)} better by 1.2")
    write_table("fitted_problems", rows)
    print("written:", write_results("fitted_problems", {"pilots": PILOTS, "fresh": FRESH, "rows": rows}))


if __name__ == "__main__":
    main()
