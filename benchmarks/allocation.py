"""Calibrated probabilities, compared with a constant power law and with learned probabilities.

Run `python benchmarks/allocation.py` (about eight minutes on two cores); writes `benchmarks/results/allocation.json`.

1. UNets, probability flow, fresh noise (64 images), equal expected cost: the power law
   `min(1, C (c_k / c_1) ** -(1/gamma + 1/2))` with all levels and 128 steps, where `C` follows from the cost and the
   best of several gammas is chosen after the runs (which favours it); the plan of the shipped calibration with the same
   levels and steps; and the plan with its own levels and steps. Midpoint coins, and independent coins averaged over
   coin seeds.
2. Random features (gamma = 2.5), independent coins: the calibrated plan, and `learn_probabilities` started from it.
"""

from typing import Any

import diffrax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _harness import write_results
from _problems import ends, images, Problem, random_features

import mlem_jax as ml
from mlem_jax._bisection import bisect
from mlem_jax._calibration.linear_model import expected_cost, select, Selection
from mlem_jax._term import FixedTerms
from mlem_jax.diffusion import load_ladder

GAMMAS = (1.0, 1.5, 2.5, 4.0, 8.0)
BUDGETS = (6.0, 12.0, 24.0)
COIN_SEEDS = 4


def power_law(
    calibration: ml.Calibration, coins: ml.AbstractCoins, budget: float, gamma: float
) -> np.ndarray:
    """The table of constant probabilities whose cost is the budget."""
    everything = tuple(range(calibration.num_levels))
    model = select(calibration.measurements, Selection(everything, 1))
    relative = calibration.costs / calibration.costs[0]

    def table(log_scale: float) -> np.ndarray:
        p = np.minimum(1.0, np.exp(log_scale) * relative ** -(1 / gamma + 0.5))
        p[0] = 1.0
        return np.tile(p, (model.steps, 1))

    low, _ = bisect(lambda x: expected_cost(model, table(x), coins) <= budget, -20.0, 20.0, width=1e-3)
    return table(low)


class Fresh:
    """Fresh initial states, cut into batches, and their accurate end states."""

    def __init__(self, problem: Problem, batches: int, size: int):
        keys = jr.split(jr.key(77), batches)
        self.problem = problem
        self.batches = [(problem.draw(key, size), jr.split(key, size)) for key in keys]
        fine = self._ends(diffrax.Euler(), problem.ts, problem.make_terms)[0]
        half = self._ends(diffrax.Euler(), problem.ts[::2], problem.make_terms)[0]
        self.reference = 2 * fine - half

    def _ends(self, solver: Any, ts: Any, make: Any) -> tuple[np.ndarray, Any]:
        ts = jnp.asarray(ts, jnp.result_type(float))
        found = [ends(solver, make, ts, ys, None, noise) for ys, noise in self.batches]
        return np.concatenate([np.asarray(end) for end, _ in found]), found[0][1]

    def run(self, solver: Any, ts: Any, make: Any) -> tuple[float, float]:
        """RMS error and cost in finest evaluations."""
        end, state = self._ends(solver, ts, make)
        error = float(np.sqrt(np.mean((end - self.reference) ** 2)))
        return error, ml.evaluation_report(state).finest_evaluations


def mean_run(fresh: Fresh, solvers: list[Any], ts: Any, make: Any) -> dict[str, float]:
    """Root mean square error, its standard deviation, and mean cost over coin seeds."""
    runs = np.array([fresh.run(solver, ts, make) for solver in solvers])
    deviation = float(np.std(runs[:, 0], ddof=1)) if len(runs) > 1 else 0.0
    return {
        "error": float(np.sqrt(np.mean(runs[:, 0] ** 2))),
        "error_sd": deviation,
        "cost": float(runs[:, 1].mean()),
    }


def on_unets() -> list[dict[str, Any]]:
    """The first comparison."""
    ladder = load_ladder()
    calibration = ladder.calibration()
    problem = images(ladder)
    fresh = Fresh(problem, 4, 16)
    everything = tuple(range(calibration.num_levels))
    rows = []
    for name, coins, seeds in (
        ("midpoint", ml.SystematicCoins(offset=0.5), 1),
        ("independent", ml.IndependentCoins(), COIN_SEEDS),
    ):
        for budget in BUDGETS:
            keys = [jr.key(seed) for seed in range(seeds)]
            power_laws: dict[str, Any] = {}
            for gamma in GAMMAS:
                p = ml.TabulatedProbabilities(
                    calibration.ts[:-1], power_law(calibration, coins, budget, gamma)
                )
                solvers = [ml.MLEM(p, coins=coins, key=key) for key in keys]
                run = mean_run(fresh, solvers, problem.ts, problem.make_terms)
                power_laws[f"power law, gamma {gamma:g}"] = run
            plans: dict[str, Any] = {}
            for label, levels, steps in (
                ("plan, same levels and steps", everything, 128),
                ("plan", None, None),
            ):
                found = calibration.plan(budget=budget, coins=coins, levels=levels, steps=steps)
                if len(found.levels) == 1:
                    continue
                solvers = [found.solver(key=key) for key in keys]
                kept = found.terms(problem.make_terms(jr.key(0)))
                plans[label] = mean_run(fresh, solvers, found.ts, FixedTerms(kept))
            best = min(row["error"] for row in power_laws.values())
            for label, row in {**power_laws, **plans}.items():
                rows.append(
                    {"coins": name, "budget": budget, "method": label, **row, "gain": best / row["error"]}
                )
                print(
                    f"{name:12s} budget {budget:4.0f}  {label:30s} cost {row['cost']:5.1f}  error {row['error']:.4f} ± "
                    f"{row['error_sd']:.4f}  best power law / this {best / row['error']:.2f}",
                    flush=True,
                )
    return rows


def learned() -> list[dict[str, Any]]:
    """The second comparison."""
    problem = random_features(gamma=2.5, steps=64)
    keys = jr.split(jr.key(3), 3)
    calibration = ml.calibrate(
        problem.make_terms, problem.ts, problem.draw(keys[0], 64), key=keys[1], trials=(), progress=False
    )
    fresh = Fresh(problem, 1, 256)
    everything = tuple(range(calibration.num_levels))
    rows = []
    for budget in (8.0, 16.0):
        coins = ml.IndependentCoins()
        plan = calibration.plan(budget=budget, coins=coins, levels=everything, steps=64)
        terms = problem.make_terms(jr.key(0))
        better, _ = ml.learn_probabilities(
            terms,
            problem.ts,
            problem.draw(keys[2], 128),
            key=keys[1],
            start=plan.probabilities,
            budget=plan.cost,
        )
        solvers = {
            "calibrated": [plan.solver(key=jr.key(seed)) for seed in range(16)],
            "learned": [ml.MLEM(better, coins=coins, key=jr.key(seed)) for seed in range(16)],
        }
        for label, mine in solvers.items():
            row = mean_run(fresh, mine, problem.ts, problem.make_terms)
            rows.append({"budget": budget, "method": label, **row})
            print(f"random features, budget {budget:.0f}, {label}: {row}", flush=True)
    return rows


def main() -> None:
    print(__doc__)
    print("written:", write_results("allocation", {"unets": on_unets(), "learned": learned()}))


if __name__ == "__main__":
    main()
