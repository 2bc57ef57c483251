"""Error against cost on a ladder that a study trained itself: what `guidance.py` and `gpu.py` share."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _curves import best_grid as best_of_grids, by_method, costs_to_reach, markdown, Row, summary
from _image_methods import OURS, OURS_SECOND, planned, references
from _methods import Batch, draw, Method, on_grids, Shared
from _rivals import DPMSolver, Euler, Plain
from _runs import add_seconds, measure
from jaxtyping import Array, Int

import mlem_jax as ml
from mlem_jax.diffusion import Config, Ladder, Level

EULER, MULTISTEP = "Euler (DDIM)", "DPM-Solver++(2M)"
INDEPENDENT = "ML-EM, independent coins"
# The paper's coins are combined with the paper's method only.
PAPERS_METHOD = ml.EulerMaruyama.name
# The names of the plans of each method in tables.
_OURS = {ml.EulerMaruyama.name: OURS, ml.AdamsBashforth.name: OURS_SECOND}
METHODS = (EULER, MULTISTEP, INDEPENDENT, OURS, OURS_SECOND)
_GRIDS = ("karras", "log")


class Effort(NamedTuple):
    """Steps of the reference's grid; step counts of Euler and of DPM-Solver++(2M); budgets of plans; the step counts
    whose errors are the targets; images of a batch; batches; coin seeds; rounds of timing."""

    fine: int
    euler: tuple[int, ...]
    multistep: tuple[int, ...]
    budgets: tuple[float, ...]
    targets: dict[str, tuple[int, ...]]
    images: int
    batches: int
    coin_seeds: int
    rounds: int


class Labelled(eqx.Module):
    """A level whose labels, one for each image of the batch, are fixed."""

    level: Any
    labels: Int[Array, " n"]

    def __call__(self, t: Any, y: Array, args: Any) -> Array:
        return self.level(t, y, self.labels)


def tiny_ladder(count: int, *, classes: int | None = None) -> Ladder:
    """Untrained dense networks, for tests of a study."""
    levels = tuple(Level(width=2 * 2**k, folds=(4,), multipliers=(1,), blocks=(1,)) for k in range(count))
    config = Config("tiny", (4, 4, 1), levels, classes=classes)
    return Ladder(config.networks(), config, {}, {})


def ladder_problem(
    ladder: Ladder, fine: int, *, guidance: float | None = None, labels: Int[np.ndarray, " n"] | None = None
) -> Shared:
    """The probability flow on a fine grid of Karras' times, with a label for each image of a batch."""
    process, term = ladder.config.process, ladder.term(guidance=guidance)
    levels = term.levels
    if labels is not None:
        levels = tuple(Labelled(level, jnp.asarray(labels)) for level in levels)
    assert term.costs is not None
    costs = tuple(cost / term.costs[-1] for cost in term.costs)
    name = "probability flow" + ("" if guidance is None else f", guidance {guidance:g}")
    shape, ts = ladder.config.shape, process.grid(fine)
    return Shared(name, levels, costs, ts, None, shape, process.s_max)


def settings(
    problem: Shared, ladder: Ladder, calibrations: Sequence[ml.Calibration], effort: Effort
) -> tuple[list[Method], dict[str, ml.Plan], dict[str, list[float]]]:
    """All methods; the plans by setting; and, by method, the budgets whose plan has a single level. The paper's coins
    are used with calibrations for MLEM, midpoint coins with all."""
    finest = Plain(problem.levels[-1], 1.0)
    methods: list[Method] = []
    for name, step, counts in (
        (EULER, Euler(finest), effort.euler),
        (MULTISTEP, DPMSolver(finest), effort.multistep),
    ):
        methods += on_grids(name, step, ladder.config.process, counts, _GRIDS)
    plans: dict[str, ml.Plan] = {}
    alone: dict[str, list[float]] = {}
    midpoint = ml.SystematicCoins(offset=0.5)
    ours: list[tuple[str, ml.Calibration, ml.AbstractCoins]] = []
    for calibration in calibrations:
        if calibration.method.name == PAPERS_METHOD:
            ours.append((INDEPENDENT, calibration, ml.IndependentCoins()))
        ours.append((_OURS[calibration.method.name], calibration, midpoint))
    for name, calibration, coins in ours:
        alone[name] = []
        for budget in effort.budgets:
            try:
                plan = calibration.plan(budget=budget, coins=coins)
            except ValueError:
                # The budget is too small for the fewest steps of the calibration.
                continue
            if len(plan.levels) == 1:
                alone[name].append(budget)
                continue
            kept = [k + 1 for k in plan.levels]
            setting = f"budget {budget:g}, levels {kept}, {len(plan.ts) - 1} steps"
            plans[f"{name}, {setting}"] = plan
            methods.append(planned(problem, name, plan, coins, setting, 1, random=name == INDEPENDENT))
    return methods, plans, alone


def best_grid(rows: Sequence[Row]) -> list[Row]:
    """As in `_curves.py`, in the order of `METHODS`."""
    best = best_of_grids(rows)
    return [row for name in METHODS for row in best if row["method"] == name]


def compare(
    problem: Shared, ladder: Ladder, calibrations: Sequence[ml.Calibration], effort: Effort, *, seed: int
) -> tuple[dict[str, Any], list[Method], list[Batch]]:
    """All methods from the same noise, against a fine solution of the finest level."""
    differences = []

    def reference(batch: Batch) -> np.ndarray:
        best, other = references(problem, batch)
        differences.append(float(jnp.sqrt(jnp.mean((best - other) ** 2))))
        return np.asarray(best)

    batches = [draw(problem, jr.key(seed + i), effort.images, reference) for i in range(effort.batches)]
    print(f"{problem.name}: references differ by {max(differences):.2g} (RMS)", flush=True)
    methods, plans, alone = settings(problem, ladder, calibrations, effort)
    rows = measure(methods, batches, coin_seeds=effort.coin_seeds)
    add_seconds(rows, methods, batches[0], repeats=effort.rounds)
    for row in rows:
        plan = plans.get(f"{row['method']}, {row['setting']}")
        row["predicted"] = None if plan is None else plan.error
        print(
            f"{row['method']:26s} cost {row['cost']:6.2f}  {row['seconds']:6.3f} s  error {row['error']:.4f} ± "
            f"{row['error_sd']:.4f}  ({row['setting']})",
            flush=True,
        )
    found = {
        "problem": problem.name,
        "images": effort.images,
        "references_differ": max(differences),
        "relative_costs": list(problem.costs),
        "one_level_alone_at_budgets": alone,
        "rows": rows,
        "reach": reach(rows, effort.targets),
    }
    return found, methods, batches


def reach(rows: Sequence[Row], targets: dict[str, tuple[int, ...]]) -> list[Row]:
    """The cost of each method at the error of a single-model sampler with a given number of steps, for each batch."""
    table = []
    best = best_grid(rows)
    for target, counts in targets.items():
        for row in best:
            if row["method"] != target or row["steps"] not in counts:
                continue
            errors = row["batch_error"]
            evaluations, seconds = costs_to_reach(rows, errors), costs_to_reach(rows, errors, "seconds")
            for name in evaluations:
                table.append(
                    {
                        "target": f"{target}, {row['steps']} steps",
                        "error": row["error"],
                        "method": name,
                        "evaluations": summary(evaluations[name]),
                        "seconds": summary(seconds[name]),
                    }
                )
    return table


def report(table: Sequence[Row]) -> str:
    """One line for each target, one column for each method: evaluations and seconds, median over batches."""
    names = list(dict.fromkeys(row["method"] for row in table))
    lines = []
    for target in dict.fromkeys(row["target"] for row in table):
        mine = {row["method"]: row for row in table if row["target"] == target}
        line = [target, f"{next(iter(mine.values()))['error']:.4f}"]
        for name in names:
            cost, seconds = (mine[name][unit]["median"] for unit in ("evaluations", "seconds"))
            line.append("not reached" if cost is None or seconds is None else f"{cost:.1f} ({seconds:.2f} s)")
        lines.append(line)
    return markdown(["at the error of", "error", *names], lines)


def nearest(rows: Sequence[Row], cost: float) -> dict[str, int]:
    """For each method the index of the row whose cost is nearest to a given one, on the better grid."""
    best = best_grid(rows)
    found = {}
    for name, mine in by_method(best).items():
        row = min(mine, key=lambda row: abs(np.log(row["cost"] / cost)))
        found[name] = next(i for i, one in enumerate(rows) if one is row)
    return found
