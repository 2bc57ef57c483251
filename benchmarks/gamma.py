"""Study 1: does the cost to reach an error grow as the theory says, where the hierarchy is known by construction?

Run `python benchmarks/gamma.py --quick` (minutes on two cores) or `--full` (about an hour); `--smoke` is for the
tests. Writes `benchmarks/results/gamma_quick.json`, `.csv` and `.png` (`gamma_full`).

Drifts are sums of random-feature fields in 16 dimensions: field k has size `2**-k` and its width grows by `2**gamma`
a level, so a level is matrix work that costs `2**gamma` times the one before and errs half as much. The truth that all
errors are measured against is the limit of the levels: the finest level plus one field of the size of the whole
rest, solved by a second-order method (for the SDE on the same Brownian path, order 3/2). So an error has two parts, of
the level and of the steps or coins, and the best level for an error is part of the question.

Each method is tuned on one batch: level K, number of steps, looks at level K (probabilities fall from level to level
by the power that theory.md says is best for the coins). Settings on the lower envelope run again on fresh
initial states, noise and coins; the cost to reach 1.25 times the error that each level itself has is read off those
runs, and the exponent is the slope of log cost in log 1/error, for each random hierarchy; the standard error is that
of the mean over hierarchies.
"""

import argparse
import time
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _curves import by_method, cost_at, markdown
from _harness import RESULTS, write_results, write_table
from _methods import Batch, draw, marching, measure, Method, multilevel, Shared, stochastic_runge_kutta, tune
from _problems import random_feature_levels, RandomFeatures
from _rivals import Euler, Heun, march, Plain
from jaxtyping import Array
from matplotlib.figure import Figure

import mlem_jax as ml
from mlem_jax.plot import save_figure

DIM, END, NOISE = 16, 2.0, 0.5
ABOVE_FLOOR = 1.25


class Size(NamedTuple):
    """What a setting of the study does: levels and width of the cheapest by gamma, trajectories, random
    hierarchies, coin seeds when tuning and when measuring."""

    levels: dict[float, tuple[int, int]]
    trajectories: int
    hierarchies: int
    tuning_seeds: int
    coin_seeds: int


SIZES = {
    "smoke": Size({2.5: (3, 2)}, 4, 1, 1, 1),
    "quick": Size({1.5: (6, 8), 2.5: (5, 4), 4.0: (4, 2)}, 16, 2, 2, 4),
    "full": Size({1.5: (7, 8), 2.5: (6, 4), 4.0: (5, 2)}, 32, 4, 4, 8),
}


class Together(eqx.Module):
    """A drift of one state, for a batch of them."""

    level: RandomFeatures

    def __call__(self, t: Any, y: Array, args: Any) -> Array:
        return jax.vmap(lambda one: self.level(t, one, args))(y)


class Constant(eqx.Module):
    """Noise of constant size."""

    size: float = eqx.field(static=True)

    def __call__(self, t: Array) -> Array:
        return jnp.full_like(t, self.size)


def with_rest(finest: RandomFeatures, seed: int) -> RandomFeatures:
    """The finest level plus a field of the size that all further fields together would have."""
    width = 512
    keys = jr.split(jr.fold_in(jr.key(seed), 1000), 3)
    # sum of 4**-j over j >= count is 4**-count times 4/3.
    size = (2.0 / width * 4 / 3) ** 0.5
    return RandomFeatures(
        (*finest.inner, jr.normal(keys[0], (width, DIM)) / DIM**0.5),
        (*finest.outer, size * jr.normal(keys[1], (DIM, width))),
        (*finest.phase, jr.uniform(keys[2], (width,), maxval=2 * jnp.pi)),
    )


def hierarchy(gamma: float, num_levels: int, width: int, sde: bool, seed: int) -> tuple[Shared, Together]:
    """The problem and the drift of its truth."""
    levels, costs = random_feature_levels(gamma=gamma, num_levels=num_levels, dim=DIM, width=width, seed=seed)
    problem = Shared(
        f"gamma {gamma:g}, {'SDE' if sde else 'ODE'}",
        tuple(Together(level) for level in levels),
        tuple(c / costs[-1] for c in costs),
        jnp.linspace(0.0, END, 16 * 2**num_levels + 1),
        Constant(NOISE) if sde else None,
        (DIM,),
        1.0,
    )
    return problem, Together(with_rest(levels[-1], seed))


def accurate(problem: Shared, drift: Any, batch: Batch) -> Array:
    """The end states of a drift, solved on the whole fine grid by a method of higher order than those compared."""
    if problem.diffusion is None:
        return march(Heun(Plain(drift, 1.0)), np.asarray(problem.ts), batch.y0)[0]()
    one = problem._replace(levels=(drift,), costs=(1.0,))
    prepared = stochastic_runge_kutta(one, "", "", diffrax.ShARK(), problem.ts).prepare(batch, 0)
    return prepared.read(prepared.call())[0]


def fall(coins: str, gamma: float, sde: bool) -> float:
    """By which power of two the best probabilities fall from level to level (theory.md, sections 2 and 3): for a
    level's error `E_k(H)` between looks `H` apart, where `C_k / H + lambda E_k(H)` is least."""
    if coins == "independent":
        return 1 + gamma / 2
    if coins == "stratified" and not sde:
        return (gamma + 2) / 4
    if coins == "midpoint" and not sde:
        return (gamma + 1) / 3
    return (gamma + 2) / 3


COINS = ("independent", "stratified", "systematic", "midpoint")


def make_coins(name: str, key: Array, count: int) -> ml.AbstractCoins:
    if name == "independent":
        return ml.IndependentCoins()
    if name == "stratified":
        return ml.StratifiedCoins()
    # Given as numbers, so that both share one compilation; uniform ones are what SystematicCoins() draws.
    return ml.SystematicCoins(jr.uniform(key, (count,)) if name == "systematic" else jnp.full(count, 0.5))


def methods(problem: Shared, gamma: float) -> list[Method]:
    """All methods in all settings."""
    count, sde, fine = len(problem.levels), problem.diffusion is not None, np.asarray(problem.ts)
    found = []
    for level, cost in enumerate(problem.costs):
        plain = Plain(problem.levels[level], cost)
        powers = range(2, level + 6)
        for power in powers:
            ts = fine[:: (len(fine) - 1) // 2**power]
            setting = f"level {level + 1}, {2**power} steps"
            found.append(marching("Euler", setting, Euler(plain, problem.diffusion), ts))
            if not sde:
                found.append(marching("Heun", setting, Heun(plain), ts))
    for kept in range(2, count + 1):
        for steps in (2 * 2**kept, 8 * 2**kept):
            ts = fine[:: (len(fine) - 1) // steps]
            for coins in COINS:
                looks = (
                    (2, 4, 8, 16, 32, 64, 128) if coins == "independent" else (1, 1.5, 2, 3, 4, 6, 8, 12, 16)
                )
                for look in looks:
                    above = kept - 1 - np.arange(kept)
                    p = np.minimum(1.0, look / steps * 2.0 ** (fall(coins, gamma, sde) * above))
                    p[0] = 1.0
                    if p[-1] > 0.5:
                        continue

                    def solver(key: Array, p: np.ndarray = p, coins: str = coins) -> ml.MLEM:
                        return ml.MLEM(p, coins=make_coins(coins, jr.fold_in(key, 1), len(p)), key=key)

                    found.append(
                        multilevel(
                            problem,
                            coins,
                            f"{kept} levels, {steps} steps, {look:g} looks",
                            solver,
                            ts,
                            range(kept),
                            random=coins != "midpoint",
                        )
                    )
    return found


def exponent(targets: np.ndarray, costs: np.ndarray) -> float:
    """Slope of log cost in log 1/error over the targets that were reached; NaN with fewer than three."""
    reached = np.isfinite(costs)
    if reached.sum() < 3:
        return float("nan")
    return float(np.polyfit(-np.log(targets[reached]), np.log(costs[reached]), 1)[0])


def theory(method: str, gamma: float) -> float:
    """Exponents of theory.md, sections 2 and 3; for Heun the second-order analogue of Euler's."""
    return {"Euler": gamma + 1, "Heun": gamma + 0.5, "independent": max(gamma, 2.0)}.get(method, gamma)


def study(gamma: float, sde: bool, size: Size) -> dict[str, Any]:
    """All methods on all random hierarchies of one gamma."""
    start = time.perf_counter()
    num_levels, width = size.levels[gamma]
    curves: dict[str, list[dict[str, Any]]] = {}
    for seed in range(size.hierarchies):
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
        kept, _ = tune(methods(problem, gamma), tuning, coin_seeds=size.tuning_seeds)
        rows = measure(kept, [fresh], coin_seeds=size.coin_seeds)
        targets = ABOVE_FLOOR * np.array(floors)
        for name, mine in by_method(rows).items():
            # The cheapest level costs one unit here, whatever the number of levels.
            unit = problem.costs[0]
            costs = [
                cost_at([r["cost"] / unit for r in mine], [r["error"] for r in mine], e) for e in targets
            ]
            curves.setdefault(name, []).append(
                {
                    "hierarchy": seed,
                    "targets": targets.tolist(),
                    "costs": costs,
                    "exponent": exponent(targets[1:], np.array(costs)[1:]),
                    "last_exponent": _last(targets, costs),
                    "points": [[r["cost"] / unit, r["error"], r["error_sd"], r["setting"]] for r in mine],
                }
            )
    lines = []
    for name, mine in curves.items():
        slopes = np.array([curve["exponent"] for curve in mine])
        last = np.array([curve["last_exponent"] for curve in mine])
        expected = theory(name, gamma)
        error = np.std(slopes, ddof=1) / len(slopes) ** 0.5 if len(slopes) > 1 else np.nan
        lines.append(
            {
                "problem": f"gamma {gamma:g}, {'SDE' if sde else 'ODE'}",
                "method": name,
                "gamma": gamma,
                "theory": expected,
                "exponent": float(np.mean(slopes)),
                "standard_error": float(error),
                "last_exponent": float(np.mean(last)),
                "reached": int(np.isfinite(mine[0]["costs"]).sum()),
                "levels": num_levels,
            }
        )
        print(
            f"gamma {gamma:3g} {'SDE' if sde else 'ODE'} {name:12s} exponent {np.mean(slopes):5.2f} ± {error:4.2f}  "
            f"theory {expected:4.2f}  last step {np.mean(last):5.2f}",
            flush=True,
        )
    seconds = time.perf_counter() - start
    print(f"  ({seconds:.0f} s)", flush=True)
    return {"gamma": gamma, "sde": sde, "table": lines, "curves": curves, "study_seconds": seconds}


def _last(targets: np.ndarray, costs: list[float]) -> float:
    """The exponent between the last two targets."""
    return (
        float(-np.log(costs[-1] / costs[-2]) / np.log(targets[-1] / targets[-2]))
        if costs[-1] < np.inf
        else np.nan
    )


def draw_figure(studies: list[dict[str, Any]]) -> Figure:
    """Cost to reach an error, mean over hierarchies, with the theory's slopes for Euler and ours."""
    gammas = list(dict.fromkeys(found["gamma"] for found in studies))
    kinds = list(dict.fromkeys(found["sde"] for found in studies))
    figure = Figure(figsize=(4.2 * len(gammas), 3.8 * len(kinds)), layout="constrained")
    axes = figure.subplots(len(kinds), len(gammas), squeeze=False)
    for found in studies:
        axis = axes[kinds.index(found["sde"]), gammas.index(found["gamma"])]
        for name, curves in found["curves"].items():
            targets = np.exp(np.mean([np.log(curve["targets"]) for curve in curves], axis=0))
            costs = np.exp(np.mean([np.log(curve["costs"]) for curve in curves], axis=0))
            (line,) = axis.loglog(1 / targets, costs, ".-", label=name)
            if name in ("Euler", "midpoint") and np.isfinite(costs[-1]):
                slope = theory(name, found["gamma"])
                guide = costs[-1] * (targets / targets[-1]) ** -slope
                axis.loglog(1 / targets, guide, ":", color=line.get_color())
        axis.set_title(f"gamma = {found['gamma']:g}, {'SDE' if found['sde'] else 'ODE'}", fontsize=10)
        axis.set_xlabel("1 / error")
        axis.set_ylabel("cost (cheapest level = 1)")
        axis.grid(alpha=0.3, which="both")
    axes[0, 0].legend(fontsize=8)
    return figure


def run_study(name: str) -> list[dict[str, Any]]:
    size = SIZES[name]
    return [study(gamma, sde, size) for gamma in size.levels for sde in (False, True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    group = parser.add_mutually_exclusive_group(required=True)
    for name in SIZES:
        group.add_argument(f"--{name}", dest="size", action="store_const", const=name)
    size = parser.parse_args().size
    studies = run_study(size)
    table = [line for found in studies for line in found["table"]]
    print(
        markdown(
            ["problem", "method", "exponent", "theory", "last step"],
            [
                [
                    line["problem"],
                    line["method"],
                    f"{line['exponent']:.2f} ± {line['standard_error']:.2f}",
                    f"{line['theory']:g}",
                    f"{line['last_exponent']:.2f}",
                ]
                for line in table
            ],
        )
    )
    write_table(f"gamma_{size}", table)
    save_figure(draw_figure(studies), RESULTS / f"gamma_{size}.png")
    print("written:", write_results(f"gamma_{size}", {"studies": studies}))


if __name__ == "__main__":
    main()
