"""Study 1: does the cost to reach an error grow as the theory says, where the hierarchy is known by construction?

Run `python benchmarks/gamma.py --quick` (about 40 minutes on two cores) or `--full` (hours); `--smoke` is for the
tests. Writes `benchmarks/results/gamma_quick.json`, `.csv` and `.png` (`gamma_full`).

Drifts are sums of random-feature fields in 64 dimensions: field k has size `2**-k` and its width grows by `2**gamma`
a level, so a level is matrix work that costs `2**gamma` times the one before and errs half as much. The truth that
all errors are measured against is the limit of the levels: the finest level plus one field of the size of the whole
rest, solved by a second-order method (for the SDE on the same Brownian path, order 3/2). So an error has two parts,
of the level and of the steps or coins, and the best level for an error is part of the question.

Each method is tuned on one batch: level K, number of steps, evaluations of level K, and the power by which
probabilities fall from level to level: what theory.md says is best for the coins, or steeper. Settings on the lower
envelope run again on fresh initial states, noise and coins; the cost to reach 1.25 times the error that each level
itself has is read off those runs, and the exponent is the slope of log cost in log 1/error, for each random
hierarchy: over the errors of all levels but the cheapest, and over those of the finest three; the standard error is
that of the mean over hierarchies.
"""

import argparse
import time
from typing import Any, NamedTuple

import jax
import jax.random as jr
import numpy as np
from _curves import by_method, cost_at, markdown
from _harness import add_sizes, RESULTS, write_results, write_table
from _hierarchies import accurate, hierarchy, methods, SECOND
from _methods import draw, measure, tune
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from mlem_jax.plot import save_figure

ABOVE_FLOOR = 1.25


class Size(NamedTuple):
    """What a setting of the study does: number of levels and width of the cheapest by gamma, trajectories, random
    hierarchies, coin seeds when tuning and when measuring, and the settings tried (see `methods`)."""

    levels: dict[float, tuple[int, int]]
    trajectories: int
    hierarchies: int
    tuning_seeds: int
    coin_seeds: int
    looks: tuple[float, ...]
    steeper: tuple[float, ...]
    steps_of_level: tuple[int, ...]


_LOOKS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 48.0, 96.0)
SIZES = {
    "smoke": Size({2.5: (3, 2)}, 4, 1, 1, 1, (1.0, 4.0), (0.0,), (4,)),
    "quick": Size({1.5: (7, 8), 2.5: (6, 4), 4.0: (5, 2)}, 16, 3, 1, 4, _LOOKS, (0.0, 0.4), (2, 8)),
    "full": Size({1.5: (9, 8), 2.5: (7, 4), 4.0: (6, 2)}, 32, 8, 2, 8, _LOOKS, (0.0, 0.4, 0.8), (2, 4, 8)),
}


def exponent(targets: np.ndarray, costs: np.ndarray) -> float:
    """Slope of log cost in log 1/error; NaN where not all targets were reached."""
    if not np.all(np.isfinite(costs)):
        return float("nan")
    return float(np.polyfit(-np.log(targets), np.log(costs), 1)[0])


def theory(method: str, gamma: float) -> float:
    """Exponents of theory.md, sections 2 and 3; for Heun the second-order analogue of Euler's."""
    return {"Euler": gamma + 1, "Heun": gamma + 0.5, "independent": max(gamma, 2.0)}.get(method, gamma)


def study(gamma: float, sde: bool, size: Size) -> dict[str, Any]:
    """All methods on all random hierarchies of one gamma."""
    start = time.perf_counter()
    num_levels, width = size.levels[gamma]
    curves: dict[str, list[dict[str, Any]]] = {}
    for seed in range(size.hierarchies):
        # Each setting is a program of its own, and each keeps memory mappings, of which Linux grants 65530 a process.
        jax.clear_caches()
        problem, truth = hierarchy(gamma, num_levels, width, sde, seed)
        tuning, fresh = (
            draw(
                problem,
                jr.key(100 * seed + i),
                size.trajectories,
                lambda b: accurate(problem, truth, b),  # noqa: B023
            )
            for i in range(2)
        )
        floors = []
        for level in problem.levels:
            end = np.asarray(accurate(problem, level, fresh))
            floors.append(float(np.sqrt(np.mean((end - fresh.reference) ** 2))))
        settings = methods(
            problem,
            gamma,
            looks=size.looks,
            steeper=size.steeper,
            steps_of_level=size.steps_of_level,
        )
        kept, _ = tune(settings, tuning, coin_seeds=size.tuning_seeds)
        rows = measure(kept, [fresh], coin_seeds=size.coin_seeds)
        targets = ABOVE_FLOOR * np.array(floors)
        for name, mine in by_method(rows).items():
            # The cheapest level costs one unit here, whatever the number of levels.
            unit = problem.costs[0]
            points = [r["cost"] / unit for r in mine], [r["error"] for r in mine]
            costs = np.array([cost_at(*points, target) for target in targets])
            curves.setdefault(name, []).append(
                {
                    "hierarchy": seed,
                    "targets": targets.tolist(),
                    "costs": costs.tolist(),
                    "exponent": exponent(targets[1:], costs[1:]),
                    "last_exponent": exponent(targets[-3:], costs[-3:]),
                    "points": [[r["cost"] / unit, r["error"], r["error_sd"], r["setting"]] for r in mine],
                }
            )
    lines = []
    for name, mine in curves.items():
        line: dict[str, Any] = {
            "problem": f"gamma {gamma:g}, {'SDE' if sde else 'ODE'}",
            "method": name,
            "gamma": gamma,
            "theory": theory(name, gamma),
            "levels": num_levels,
            "hierarchies": size.hierarchies,
        }
        for kind in ("exponent", "last_exponent"):
            slopes = np.array([curve[kind] for curve in mine])
            spread = np.std(slopes, ddof=1) if len(slopes) > 1 else np.nan
            line[kind] = float(np.mean(slopes))
            line[f"{kind}_standard_error"] = float(spread / len(slopes) ** 0.5)
        lines.append(line)
        print(f"{line['problem']} {name:15s} {shown(line)}  theory {line['theory']:g}", flush=True)
    seconds = time.perf_counter() - start
    print(f"  ({seconds:.0f} s)", flush=True)
    return {"gamma": gamma, "sde": sde, "table": lines, "curves": curves, "study_seconds": seconds}


def shown(line: dict[str, Any]) -> str:
    """Both exponents with their standard errors."""
    return " | ".join(
        f"{line[kind]:.2f} ± {line[f'{kind}_standard_error']:.2f}" for kind in ("exponent", "last_exponent")
    )


def draw_figure(studies: list[dict[str, Any]]) -> Figure:
    """Cost to reach an error, mean over hierarchies, with the theory's slopes for Euler and ours."""
    gammas = list(dict.fromkeys(found["gamma"] for found in studies))
    kinds = list(dict.fromkeys(found["sde"] for found in studies))
    figure = Figure(figsize=(4.2 * len(gammas), 3.8 * len(kinds)), layout="constrained")
    axes = figure.subplots(len(kinds), len(gammas), squeeze=False)
    # A method has its colour in every panel, also where another one is missing.
    names = list(dict.fromkeys(name for found in studies for name in found["curves"]))
    for found in studies:
        axis = axes[kinds.index(found["sde"]), gammas.index(found["gamma"])]
        for name, curves in found["curves"].items():
            targets = np.exp(np.mean([np.log(curve["targets"]) for curve in curves], axis=0))
            costs = np.exp(np.mean([np.log(curve["costs"]) for curve in curves], axis=0))
            color = f"C{names.index(name)}"
            axis.loglog(1 / targets, costs, ".-", color=color, label=name)
            if name in ("Euler", "midpoint", SECOND) and np.isfinite(costs[-1]):
                slope = theory(name, found["gamma"])
                guide = costs[-1] * (targets / targets[-1]) ** -slope
                axis.loglog(1 / targets, guide, ":", color=color)
        axis.set_title(f"gamma = {found['gamma']:g}, {'SDE' if found['sde'] else 'ODE'}", fontsize=10)
        axis.set_xlabel("1 / error")
        axis.set_ylabel("cost (cheapest level = 1)")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3, which="both")
    axes[0, 0].legend(fontsize=8)
    return figure


def run_study(name: str) -> list[dict[str, Any]]:
    size = SIZES[name]
    return [study(gamma, sde, size) for gamma in size.levels for sde in (False, True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_sizes(parser)
    size = parser.parse_args().size
    studies = run_study(size)
    table = [line for found in studies for line in found["table"]]
    print(
        markdown(
            ["problem", "method", "exponent", "finest three", "theory"],
            [
                [line["problem"], line["method"], *shown(line).split(" | "), f"{line['theory']:g}"]
                for line in table
            ],
        )
    )
    if size == "smoke":
        return
    write_table(f"gamma_{size}", table)
    save_figure(draw_figure(studies), RESULTS / f"gamma_{size}.png")
    print("written:", write_results(f"gamma_{size}", {"studies": studies}))


if __name__ == "__main__":
    main()
