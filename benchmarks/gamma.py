"""Study 1: does the cost at a given error grow as the theory predicts, for hierarchies with a known gamma?

Run `python benchmarks/gamma.py --quick` (about 40 minutes on two cores) or `--full` (hours); `--smoke` is for the
tests. Writes `benchmarks/results/gamma_quick.json`, `.csv` and `.png` (`gamma_full`).

Drifts are sums of random-feature fields in 64 dimensions. Field k has size `2**-k`, and the widths of the fields grow
by factors of `2**gamma`. A level is therefore a matrix product that costs `2**gamma` times as much as the previous
level and has half its error. The truth, from which all errors are measured, is the limit of the levels: the finest
level plus one field of the size of all further ones, solved by a second-order method (for the SDE a method of order 3/2
on the same Brownian path). The error of a solve has two parts, that of its level and that of its steps or coins, so the
best level depends on the error.

The settings of each method are tuned on one batch: the level K, the number of steps, the number of firings of level K,
and the exponent with which probabilities decrease from level to level (the optimum of docs/theory.md for the coins, or
a larger one). Settings on the lower envelope run again on fresh initial states, noise and coins. From these runs the
study reads the cost at 1.25 times the error of each level itself. The exponent is the slope of log cost against log
1/error for each random hierarchy: over the errors of all levels but the cheapest, and over those of the finest three.
The standard error is that of the mean over hierarchies.
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
from _methods import draw
from _runs import measure, tune
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from mlem_jax.plot import save_figure

# Targets are this multiple of the errors of the levels themselves, which no method on a level can fall below.
ABOVE_FLOOR = 1.25


class Size(NamedTuple):
    """The size of the study: number of levels and width of the cheapest one, by gamma; trajectories; random
    hierarchies; coin seeds for tuning and for measuring; and the settings that are tried (see `methods`)."""

    levels: dict[float, tuple[int, int]]
    trajectories: int
    hierarchies: int
    tuning_seeds: int
    coin_seeds: int
    firings: tuple[float, ...]
    steeper: tuple[float, ...]
    steps_of_level: tuple[int, ...]


_FIRINGS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 48.0, 96.0)
SIZES = {
    "smoke": Size({2.5: (3, 2)}, 4, 1, 1, 1, (1.0, 4.0), (0.0,), (4,)),
    "quick": Size({1.5: (7, 8), 2.5: (6, 4), 4.0: (5, 2)}, 16, 3, 1, 4, _FIRINGS, (0.0, 0.4), (2, 8)),
    "full": Size({1.5: (9, 8), 2.5: (7, 4), 4.0: (6, 2)}, 32, 8, 2, 8, _FIRINGS, (0.0, 0.4, 0.8), (2, 4, 8)),
}


def exponent(targets: np.ndarray, costs: np.ndarray) -> float:
    """The slope of log cost against log 1/error; NaN if not all targets are reached."""
    if not np.all(np.isfinite(costs)):
        return float("nan")
    return float(np.polyfit(-np.log(targets), np.log(costs), 1)[0])


def theory(method: str, gamma: float) -> float:
    """The exponents of docs/theory.md; for Heun the second-order analogue of Euler's."""
    return {"Euler": gamma + 1, "Heun": gamma + 0.5, "independent": max(gamma, 2.0)}.get(method, gamma)


def study(gamma: float, sde: bool, size: Size) -> dict[str, Any]:
    """All methods on all random hierarchies of one gamma."""
    start = time.perf_counter()
    curves: dict[str, list[dict[str, Any]]] = {}
    for seed in range(size.hierarchies):
        # Every setting is compiled separately, and each compiled program holds memory mappings, of which Linux allows
        # 65530 per process.
        jax.clear_caches()
        for name, curve in measured_curves(gamma, sde, size, seed).items():
            curves.setdefault(name, []).append(curve)
    lines = []
    for name, mine in curves.items():
        line: dict[str, Any] = {
            "problem": f"gamma {gamma:g}, {'SDE' if sde else 'ODE'}",
            "method": name,
            "gamma": gamma,
            "theory": theory(name, gamma),
            "levels": size.levels[gamma][0],
            "hierarchies": size.hierarchies,
        }
        for kind in ("exponent", "last_exponent"):
            slopes = np.array([curve[kind] for curve in mine])
            deviation = np.std(slopes, ddof=1) if len(slopes) > 1 else np.nan
            line[kind] = float(np.mean(slopes))
            line[f"{kind}_standard_error"] = float(deviation / len(slopes) ** 0.5)
        lines.append(line)
        print(
            f"{line['problem']} {name:15s} {' | '.join(shown(line))}  theory {line['theory']:g}", flush=True
        )
    seconds = time.perf_counter() - start
    print(f"  ({seconds:.0f} s)", flush=True)
    return {"gamma": gamma, "sde": sde, "table": lines, "curves": curves, "study_seconds": seconds}


def measured_curves(gamma: float, sde: bool, size: Size, seed: int) -> dict[str, dict[str, Any]]:
    """The curve of each method on one random hierarchy, its costs at the targets, and their exponents."""
    num_levels, width = size.levels[gamma]
    problem, truth = hierarchy(gamma, num_levels, width, sde, seed)
    tuning, fresh = (
        draw(problem, jr.key(100 * seed + i), size.trajectories, lambda b: accurate(problem, truth, b))
        for i in range(2)
    )
    floors = []
    for level in problem.levels:
        end = np.asarray(accurate(problem, level, fresh))
        floors.append(float(np.sqrt(np.mean((end - fresh.reference) ** 2))))
    settings = methods(
        problem, gamma, firings=size.firings, steeper=size.steeper, steps_of_level=size.steps_of_level
    )
    kept, _ = tune(settings, tuning, coin_seeds=size.tuning_seeds)
    rows = measure(kept, [fresh], coin_seeds=size.coin_seeds)
    targets, found = ABOVE_FLOOR * np.array(floors), {}
    # The cheapest level costs one unit, whatever the number of levels.
    unit = problem.costs[0]
    for name, mine in by_method(rows).items():
        points = [r["cost"] / unit for r in mine], [r["error"] for r in mine]
        costs = np.array([cost_at(*points, target) for target in targets])
        found[name] = {
            "hierarchy": seed,
            "targets": targets.tolist(),
            "costs": costs.tolist(),
            "exponent": exponent(targets[1:], costs[1:]),
            "last_exponent": exponent(targets[-3:], costs[-3:]),
            "points": [[r["cost"] / unit, r["error"], r["error_sd"], r["setting"]] for r in mine],
        }
    return found


def shown(line: dict[str, Any]) -> list[str]:
    """Both exponents with their standard errors."""
    return [
        f"{line[kind]:.2f} ± {line[f'{kind}_standard_error']:.2f}" for kind in ("exponent", "last_exponent")
    ]


def draw_figure(studies: list[dict[str, Any]]) -> Figure:
    """The cost at each error, mean over hierarchies, with the theory's slopes for three of the methods."""
    gammas = list(dict.fromkeys(found["gamma"] for found in studies))
    kinds = list(dict.fromkeys(found["sde"] for found in studies))
    figure = Figure(figsize=(4.2 * len(gammas), 3.8 * len(kinds)), layout="constrained")
    axes = figure.subplots(len(kinds), len(gammas), squeeze=False)
    # A method has the same colour in all panels.
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
            [[line["problem"], line["method"], *shown(line), f"{line['theory']:g}"] for line in table],
        )
    )
    if size == "smoke":
        return
    write_table(f"gamma_{size}", table)
    save_figure(draw_figure(studies), RESULTS / f"gamma_{size}.png")
    print("written:", write_results(f"gamma_{size}", {"studies": studies}))


if __name__ == "__main__":
    main()
