"""The methods that sample from a ladder of networks: ML-EM and its rivals, with all settings that are tuned."""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from _fitted_methods import fitted_steps, SEVERAL_FITTED
from _learned import learned, NAME as INDEPENDENT_LEARNED
from _methods import Batch, marching, Method, multilevel, Shared, stochastic_runge_kutta
from _rivals import (
    DPMSolver,
    Drift,
    Euler,
    exponential_weights,
    Held,
    Heun,
    march,
    places_in,
    Plain,
    SDEDPMSolver,
    Switched,
)
from jaxtyping import Array, PRNGKeyArray

import mlem_jax as ml
from mlem_jax.diffusion import Ladder

FINE = {False: 512, True: 1024}
DDIM = "Euler (DDIM), default grid"
OURS = "ML-EM, midpoint plan"
OURS_SPLIT = "ML-EM, midpoint plan, steps split"
OURS_SECOND = "ML-EM, second order, midpoint plan"
ALL_OURS = (OURS, OURS_SPLIT, OURS_SECOND, SEVERAL_FITTED)
INDEPENDENT_POWER_LAW = "ML-EM, independent coins, power law"
INDEPENDENT_CALIBRATED = "ML-EM, independent coins, calibrated"
INDEPENDENT = (INDEPENDENT_POWER_LAW, INDEPENDENT_CALIBRATED, INDEPENDENT_LEARNED)
SINGLE = {
    False: ("Euler, best grid", "Heun", "DPM-Solver++(2M)", "UniPC, order 2"),
    True: ("Euler, best grid", "SEA", "ShARK", "SRA1", "SDE-DPM-Solver++(2M)"),
}
GRIDS = ("karras", "log", "cosine")


class Effort(NamedTuple):
    """The settings that are tried: step counts of Euler, of multistep methods and of stochastic Runge-Kutta methods;
    times at which networks are switched; intervals and step counts of held corrections; budgets of plans; scales of the
    power law; numbers of parts into which the steps of plans are split; budgets at which probabilities are learned."""

    euler: tuple[int, ...]
    higher: tuple[int, ...]
    stages: tuple[int, ...]
    until: tuple[float, ...]
    intervals: tuple[int, ...]
    held_steps: tuple[int, ...]
    budgets: tuple[float, ...]
    scales: tuple[float, ...]
    splits: tuple[int, ...]
    learned: tuple[float, ...] = ()


EFFORTS = {
    "smoke": Effort((4, 8), (2,), (2,), (1.0,), (2,), (4,), (6.0,), (4.0,), (2,)),
    "quick": Effort(
        (8, 16, 32, 50, 64, 100, 128, 250),
        (5, 8, 10, 12, 16, 20, 25, 32, 50),
        (8, 16, 32, 64),
        (0.15, 0.4, 1.0, 2.5, 6.0),
        (2, 3, 4, 6, 8),
        (16, 32, 64, 128),
        (4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0),
        (1.0, 2.0, 4.0, 8.0, 16.0),
        (4,),
    ),
    "full": Effort(
        (8, 12, 16, 24, 32, 50, 64, 100, 128, 180, 250),
        (4, 5, 6, 8, 10, 12, 14, 16, 20, 25, 32, 40, 50, 64, 100),
        (4, 8, 12, 16, 24, 32, 48, 64, 100),
        (0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0, 6.0, 12.0),
        (2, 3, 4, 5, 6, 8, 12, 16),
        (12, 16, 24, 32, 48, 64, 96, 128),
        (3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 32.0, 48.0, 64.0),
        (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
        (2, 4),
    ),
}


class ReverseNoise(eqx.Module):
    """The diffusion of the reverse SDE."""

    def __call__(self, s: Array) -> Array:
        return jnp.sqrt(2 * s)


def image_problem(ladder: Ladder, sde: bool, *, fine: int | None = None) -> Shared:
    """Sampling from a ladder, on a fine grid of Karras' times, by default of `FINE` steps."""
    process, flops = ladder.config.process, ladder.flops()
    ts = process.grid(fine or FINE[sde])
    return Shared(
        "reverse SDE" if sde else "probability flow",
        ladder.term(sde=sde).levels,
        tuple(f / flops[-1] for f in flops),
        ts,
        ReverseNoise() if sde else None,
        ladder.config.shape,
        process.s_max,
        exponential_weights(ts),
    )


def references(problem: Shared, batch: Batch) -> tuple[Array, Array]:
    """The end states of the finest level by two methods on the whole fine grid: the reference, and a second solution to
    estimate its error. For the probability flow Heun and DPM-Solver++(2M); for the reverse SDE ShARK and a Richardson
    extrapolation of Euler, both on the batch's Brownian path."""
    finest, ts = Plain(problem.levels[-1], 1.0), np.asarray(problem.ts)

    def end(step: Any, grid: np.ndarray) -> Array:
        return march(step, grid, batch.y0, path=batch.path)[0]()

    if problem.diffusion is None:
        return end(Heun(finest), ts), end(DPMSolver(finest), ts)
    euler = Euler(finest, problem.diffusion)
    shark = stochastic_runge_kutta(problem, "", "", diffrax.ShARK(), ts).prepare(batch, 0)
    return shark.read(shark.call())[0], 2 * end(euler, ts) - end(euler, ts[::2])


def _multistep(problem: Shared, drift: Drift) -> DPMSolver | SDEDPMSolver:
    return DPMSolver(drift) if problem.diffusion is None else SDEDPMSolver(drift)


def single_model(problem: Shared, grid: Any, effort: Effort) -> list[Method]:
    """A single level: the finest, and the next cheaper one."""
    sde, levels = problem.diffusion is not None, problem.levels
    found = [
        marching(DDIM, f"{n} steps", Euler(Plain(levels[-1], 1.0), problem.diffusion), grid(n, GRIDS[0]))
        for n in effort.euler
    ]
    for spacing in GRIDS:
        for level, suffix in ((len(levels) - 1, ""), (len(levels) - 2, ", next cheaper level")):
            plain = Plain(levels[level], problem.costs[level])
            multistep = "SDE-DPM-Solver++(2M)" if sde else "DPM-Solver++(2M)"
            euler = "Euler" if suffix else "Euler, best grid"
            for n in effort.euler:
                step = Euler(plain, problem.diffusion)
                found.append(marching(euler + suffix, f"{n} steps, {spacing}", step, grid(n, spacing)))
            for n in effort.higher:
                setting, ts = f"{n} steps, {spacing}", grid(n, spacing)
                found.append(marching(multistep + suffix, setting, _multistep(problem, plain), ts))
                if not sde and not suffix:
                    found.append(marching("UniPC, order 2", setting, DPMSolver(plain, True), ts))
            if not suffix and not sde:
                for n in effort.higher:
                    found.append(marching("Heun", f"{n} steps, {spacing}", Heun(plain), grid(n, spacing)))
            if not suffix and sde:
                solvers = {"SEA": diffrax.SEA(), "ShARK": diffrax.ShARK(), "SRA1": diffrax.SRA1()}
                for name, solver in solvers.items():
                    for n in effort.stages:
                        setting, ts = f"{n} steps, {spacing}", grid(n, spacing)
                        found.append(stochastic_runge_kutta(problem, name, setting, solver, ts))
    return found


def two_models(problem: Shared, grid: Any, effort: Effort) -> list[Method]:
    """Two levels without ML-EM: switching from one to the other, and a held correction."""
    sde, levels, costs = problem.diffusion is not None, problem.levels, problem.costs
    multistep = "SDE-DPM-Solver++" if sde else "DPM-Solver++"
    found = []
    for small in range(1, len(levels) - 1):
        for until in effort.until:
            drift = Switched(levels[small], levels[-1], (costs[small], 1.0), jnp.asarray(until))
            setting = f"level {small + 1} until s = {until:g}"
            for n in effort.euler:
                step, ts = Euler(drift, problem.diffusion), grid(n, "karras")
                found.append(marching("switching, Euler", f"{setting}, {n} steps", step, ts))
            for n in effort.higher:
                for spacing in GRIDS[:2]:
                    step, ts = _multistep(problem, drift), grid(n, spacing)
                    name = f"switching, {multistep}"
                    found.append(marching(name, f"{setting}, {n} steps, {spacing}", step, ts))
    for cheap in range(len(levels) - 1):
        for interval in effort.intervals:
            drift = Held(levels[cheap], levels[-1], (costs[cheap], 1.0), jnp.asarray(interval))
            for n in effort.held_steps:
                for spacing in GRIDS[:2]:
                    setting = f"level {cheap + 1}, every {interval} of {n} steps, {spacing}"
                    step, ts = Euler(drift, problem.diffusion), grid(n, spacing)
                    found.append(marching("held correction, Euler", setting, step, ts))
                    step = _multistep(problem, drift)
                    found.append(marching(f"held correction, {multistep}", setting, step, ts))
    return found


def split_plan(plan: ml.Plan, fine: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """The plan's steps, each split into parts on the fine grid (fewer where that has fewer steps), and their
    probabilities. Levels that always fire still do; the expected number of firings of the others is unchanged."""
    places = places_in(fine, plan.ts)
    counts = np.minimum(parts, np.diff(places))
    inner = [
        np.linspace(a, b, count + 1).round().astype(int)[:-1]
        for a, b, count in zip(places[:-1], places[1:], counts, strict=True)
    ]
    always = np.all(plan.table >= 1, axis=0)
    table = np.where(always, 1.0, plan.table / counts[:, None])
    return fine[np.concatenate([*inner, places[-1:]])], np.repeat(table, counts, axis=0)


def planned(
    problem: Shared,
    name: str,
    plan: ml.Plan,
    coins: ml.AbstractCoins,
    setting: str,
    parts: int,
    *,
    random: bool,
) -> Method:
    """The multilevel solver of a plan, with each step split into parts."""
    ts, table = split_plan(plan, np.asarray(problem.ts), parts)
    probabilities = ml.TabulatedProbabilities(ts[:-1], table)

    def solver(key: PRNGKeyArray) -> diffrax.AbstractSolver:
        return plan.method.multilevel_solver(probabilities, coins=coins, key=key)

    return multilevel(problem, name, setting, solver, ts, plan.levels, random=random)


def multilevel_methods(problem: Shared, ladder: Ladder, grid: Any, effort: Effort) -> list[Method]:
    """ML-EM with the paper's coins, by a power law and by a calibration; with the library's default coins; and with
    steps of second order, if the ladder has a calibration for them."""
    sde = problem.diffusion is not None
    calibration = ladder.calibration(sde=sde)
    second = ladder.calibrations.get("sde_2" if sde else "ode_2")
    everything = tuple(range(len(problem.levels)))
    without = (*everything[:-2], everything[-1])
    steps = len(calibration.ts) - 1
    found = []
    for gamma in (1.5, 2.5, 4.0):
        for scale in effort.scales:
            p = ml.PowerLaw(problem.costs, scale=scale, gamma=gamma)

            def solver(key: PRNGKeyArray, p: ml.PowerLaw = p) -> ml.MLEM:
                return ml.MLEM(p, coins=ml.IndependentCoins(), key=key)

            setting, ts = f"gamma {gamma:g}, scale {scale:g}", grid(steps, "karras")
            found.append(
                multilevel(problem, INDEPENDENT_POWER_LAW, setting, solver, ts, everything, random=True)
            )
    for budget in effort.learned:
        method = learned(problem, calibration, budget)
        if method is not None:
            found.append(method)
    midpoint, independent = ml.SystematicCoins(offset=0.5), ml.IndependentCoins()
    for budget in effort.budgets:
        for measured, coins, name in (
            (calibration, independent, INDEPENDENT_CALIBRATED),
            (calibration, midpoint, OURS),
            (second, midpoint, OURS_SECOND),
        ):
            if measured is None:
                continue
            plans = {}
            for levels in (None,) if name == OURS else (None, everything, without):
                try:
                    plan = measured.plan(budget=budget, coins=coins, levels=levels)
                except ValueError:
                    continue
                if len(plan.levels) > 1:
                    plans[plan.levels] = plan
            for plan in plans.values():
                setting = (
                    f"budget {budget:g}, levels {[k + 1 for k in plan.levels]}, {len(plan.ts) - 1} steps"
                )
                found.append(planned(problem, name, plan, coins, setting, 1, random=not coins.deterministic))
                if name == OURS:
                    for parts in effort.splits:
                        split = f"{setting} x {parts}"
                        found.append(planned(problem, OURS_SPLIT, plan, coins, split, parts, random=False))
    return found


def all_methods(ladder: Ladder, problem: Shared, effort: Effort) -> list[Method]:
    """All methods with all settings."""
    process = ladder.config.process

    def grid(steps: int, spacing: str) -> np.ndarray:
        return np.asarray(process.grid(steps, spacing=spacing))

    return [
        *single_model(problem, grid, effort),
        *two_models(problem, grid, effort),
        *multilevel_methods(problem, ladder, grid, effort),
        *fitted_steps(problem, ladder),
    ]
