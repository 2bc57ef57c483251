"""Solves of the main job: every method on the same noise and equation, against one reference."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._brownian import GridBrownianPath
from .._calibration import FittedPlan, Plan
from .._solver import evaluation_report, EvaluationReport, LinearMultistep
from .._term import find_multilevel_term, with_levels
from ..diffusion import dpm_solver, Ladder, reverse_diffusion

FINE_STEPS = {False: 256, True: 1024}
EULER, DPM = "Euler", "DPM-Solver++(2M)"
_REPEATS = 3
# An image that is the reference's exactly has an error of which the logarithm exists.
_LEAST = 1e-30


@dataclasses.dataclass(frozen=True)
class Row:
    """One solve: `error` is the root mean square distance to the reference over all pixels of all
    images (pixels have values in [-1, 1]); `median_error` and `typical_error` are median and geometric mean over images
    of each image's own; `predicted`, the error that the plan promised, if there was one; `finest_evaluations` counts
    FLOPs in units of the finest level's; `seconds` is without compilation, the mean of several runs."""

    method: str
    steps: int
    error: float
    median_error: float
    typical_error: float
    predicted: float | None
    finest_evaluations: float
    seconds: float
    seed: int


def _compiled(
    solver: diffrax.AbstractSolver,
    ts: Float[Array, " times"],
    terms: Any,
    y0: Float[Array, "..."],
    repeats: int,
) -> Callable[[diffrax.AbstractSolver], tuple[np.ndarray, Any, float]]:
    """A function of a solver of this one's type that returns the end images, the solver's state and the seconds of a
    solve. It is compiled before it is returned."""

    def solve(solver, ts, terms, y0):
        saveat = diffrax.SaveAt(t1=True, solver_state=True)
        controller = diffrax.StepTo(ts)
        sol = diffrax.diffeqsolve(
            terms, solver, ts[0], ts[-1], None, y0, saveat=saveat, stepsize_controller=controller
        )
        assert sol.ys is not None
        return sol.ys[0], sol.solver_state

    executable: Any = eqx.filter_jit(solve)
    executable = executable.lower(solver, ts, terms, y0).compile()

    def run(solver: diffrax.AbstractSolver) -> tuple[np.ndarray, Any, float]:
        start = time.perf_counter()
        for _ in range(repeats - 1):
            jax.block_until_ready(executable(solver, ts, terms, y0))
        end, state = jax.block_until_ready(executable(solver, ts, terms, y0))
        return np.asarray(end), state, (time.perf_counter() - start) / repeats

    return run


class Bench:
    """The same noise, equation and reference for all methods, and what was measured of them so far."""

    def __init__(self, ladder: Ladder, seed: int, samples: int, sde: bool, report: Callable[[str], None]):
        self.seed, self.report, self.fine_steps, self.sde = seed, report, FINE_STEPS[sde], sde
        self.process = process = ladder.config.process
        noise_key, path_key = jr.split(jr.key(seed))
        self.y0 = process.s_max * jr.normal(noise_key, (samples, *ladder.config.shape))
        self.fine = process.grid(self.fine_steps)
        self.terms: Any = ladder.term(sde=sde)
        if sde:
            path = GridBrownianPath(self.fine, self.y0.shape, key=path_key)
            self.terms = diffrax.MultiTerm(self.terms, reverse_diffusion(path))
        report("reference")
        solver = diffrax.Euler() if sde else diffrax.Heun()
        reference, _, _ = _compiled(solver, self.fine, self.terms, self.y0, 1)(solver)
        self.reference = reference
        self.images: dict[tuple[str, int], np.ndarray] = {}
        self.rows: list[Row] = []
        self.reports: dict[str, EvaluationReport] = {}
        self.levels: dict[str, tuple[int, ...]] = {}

    def measure_euler(self, steps: int) -> Row:
        """Euler on the finest level alone, one evaluation a step."""
        solver = diffrax.Euler()
        self.report(f"{EULER}, {steps} steps")
        # Every m-th time of the fine grid, so that all see one Brownian path.
        run = _compiled(solver, self.fine[:: self.fine_steps // steps], self.terms, self.y0, _REPEATS)
        end, _, seconds = run(solver)
        return self._add(EULER, steps, end, seconds, float(steps), None, self.seed)

    def measure_dpm(self, steps: int) -> Row:
        """DPM-Solver++(2M) on the finest level alone, with equal steps in the logarithm of the noise level, the better
        of its usual grids here (benchmarks/README.md)."""
        self.report(f"{DPM}, {steps} steps")
        coefficients = dpm_solver(self.process.grid(steps, spacing="log"))
        _, term = find_multilevel_term(self.terms)
        solver, ts = LinearMultistep(coefficients), jnp.asarray(coefficients.ts, self.fine.dtype)
        run = _compiled(solver, ts, with_levels(self.terms, (len(term.levels) - 1,)), self.y0, _REPEATS)
        end, _, seconds = run(solver)
        return self._add(DPM, steps, end, seconds, float(steps), None, self.seed)

    def measure_plan(self, method: str, plan: Plan | FittedPlan, seeds: int) -> Row:
        """A plan with several seeds of its coins; returns the last one's row."""
        record = {"record": len(plan.ts) - 1} if isinstance(plan, Plan) and len(plan.levels) > 1 else {}
        solvers = [plan.solver(key=jr.key(self.seed + i), **record) for i in range(seeds)]
        # The noise's path knows the exact values of the fine grid's times only.
        ts = _within(self.fine, plan) if self.sde else plan.grid
        run = _compiled(solvers[0], ts, plan.terms(self.terms), self.y0, _REPEATS)
        rows = []
        for i, solver in enumerate(solvers):
            self.report(method)
            end, state, seconds = run(solver)
            evaluations = plan.cost
            if len(plan.levels) > 1:
                counted = _with_times(evaluation_report(state), plan)
                evaluations = counted.finest_evaluations
                self.reports.setdefault(method, counted)
                self.levels.setdefault(method, plan.levels)
            steps = len(plan.ts) - 1
            rows.append(self._add(method, steps, end, seconds, evaluations, plan.error, self.seed + i))
        return rows[-1]

    def _add(
        self,
        method: str,
        steps: int,
        end: np.ndarray,
        seconds: float,
        evaluations: float,
        predicted: float | None,
        seed: int,
    ) -> Row:
        squares = np.mean((end - self.reference) ** 2, axis=tuple(range(1, end.ndim)))
        error, median = float(np.sqrt(np.mean(squares))), float(np.sqrt(np.median(squares)))
        typical = float(np.exp(0.5 * np.mean(np.log(squares + _LEAST))))
        self.images[method, steps] = end
        row = Row(method, steps, error, median, typical, predicted, evaluations, seconds, seed)
        self.rows.append(row)
        return row


def _with_times(report: EvaluationReport, plan: Plan | FittedPlan) -> EvaluationReport:
    """With the times of evaluations, of which fitted steps keep no record: they are those of the plan."""
    if isinstance(plan, Plan):
        return report
    pattern = plan.firing_pattern()
    times = tuple(plan.ts[:-1][pattern[:, k]] for k in range(len(plan.levels)))
    return dataclasses.replace(report, evaluation_times=times)


def _within(fine: Float[Array, " times"], plan: Plan | FittedPlan) -> Float[Array, " steps"]:
    """The plan's times as entries of the fine grid, of which the noise's path knows the exact values."""
    places = np.abs(np.asarray(fine)[None, :] - plan.ts[:, None]).argmin(axis=1)
    return fine[places]
