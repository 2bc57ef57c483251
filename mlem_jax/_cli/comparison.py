"""The main job: images by ML-EM beside Euler on the finest level, from the same noise.

Only the comparison is here; its table and pictures are in `comparison_report.py`.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._brownian import GridBrownianPath
from .._calibration.plan import Plan
from .._coins import IndependentCoins
from .._solver.base import AbstractMultilevelSolver
from .._solver.evaluations import evaluation_report, EvaluationReport
from ..diffusion import Ladder, reverse_diffusion

FINE_STEPS = {False: 256, True: 1024}
EULER_STEPS = (8, 16, 32, 64, 128)
COIN_SEEDS = 5
_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """One solve: `error` is the root mean square distance to the reference over all pixels of all
    images (pixels have values in [-1, 1]); `median_error`, the median over images of each image's own;
    `predicted`, the error that the plan promised, if there was one; `finest_evaluations` counts FLOPs in units
    of the finest level's; `seconds` is without compilation, the mean of several runs."""

    method: str
    error: float
    median_error: float
    predicted: float | None
    finest_evaluations: float
    seconds: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All that the main job found. `images`, `reports` and `levels` (those kept) are by method, for the first
    seed; `plan` is that of the default coins. `speedup` compares errors, `median_speedup` the images' median errors."""

    rows: list[Row]
    speedup: dict[str, float]
    median_speedup: dict[str, float]
    plan: Plan
    images: dict[str, Float[np.ndarray, "n h w"]]
    reports: dict[str, EvaluationReport]
    levels: dict[str, tuple[int, ...]]


def equivalent_cost(errors: list[float], costs: list[float], error: float) -> float:
    """The cost at which a curve of measured `(cost, error)` points reaches an error.

    Interpolated between the points on logarithmic axes, and extrapolated from the last two beyond them, where the curve
    of a first-order method is a straight line.
    """
    order = np.argsort(costs)
    x, y = np.log(np.asarray(errors)[order]), np.log(np.asarray(costs)[order])
    # The segment in which the error falls to the wanted one.
    below = np.nonzero(x <= np.log(error))[0]
    right = int(np.clip(below[0] if len(below) else len(x) - 1, 1, len(x) - 1))
    slope = (y[right] - y[right - 1]) / (x[right] - x[right - 1])
    return float(np.exp(y[right] + slope * (np.log(error) - x[right])))


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


def compare(
    ladder: Ladder,
    *,
    seed: int,
    samples: int,
    budget: float | None,
    error: float | None = None,
    sde: bool,
    in_seconds: bool = False,
    report: Callable[[str], None],
) -> Comparison:
    """Draws the same images by every method and measures error, evaluations and seconds of each.

    **Arguments:**

    - `seed` of the noise and, added to 0, 1, ..., of the coins; `samples`, images in the one batch.
    - `budget` of ML-EM in finest-level evaluations, or the `error` that it should reach; `in_seconds`, as for
      [`mlem_jax.make_plan`][].
    - `report`, called with a few words before each method.

    Raises `ValueError`, before any image is drawn, for a budget or an error that cannot be met.
    """
    report("planning")
    plan = ladder.plan(budget=budget, error=error, sde=sde, in_seconds=in_seconds)
    try:
        # The paper's coins at the same cost. All levels, because a plan free to choose would leave most of them out.
        paper = ladder.calibration(sde=sde).plan(
            budget=plan.cost,
            coins=IndependentCoins(),
            levels=tuple(range(len(ladder.networks))),
            in_seconds=in_seconds,
        )
    except ValueError:
        report("no comparison with independent coins: all levels together cost more than the plan")
        paper = None
    bench = _Bench(ladder, seed, samples, sde, report)
    euler = [bench.measure_euler(steps) for steps in EULER_STEPS]
    if paper is not None:
        bench.measure_plan("ML-EM independent coins", paper, COIN_SEEDS)
    ours = bench.measure_plan("ML-EM default coins", plan, 1)

    def speedup(measured: str) -> dict[str, float]:
        errors = [getattr(row, measured) for row in euler]
        return {
            unit: equivalent_cost(errors, [getattr(row, unit) for row in euler], getattr(ours, measured))
            / getattr(ours, unit)
            for unit in ("finest_evaluations", "seconds")
        }

    return Comparison(
        bench.rows, speedup("error"), speedup("median_error"), plan, bench.images, bench.reports, bench.levels
    )


class _Bench:
    """The same noise, equation and reference for all methods, and what was measured of them so far."""

    def __init__(self, ladder: Ladder, seed: int, samples: int, sde: bool, report: Callable[[str], None]):
        self.seed, self.report, self.fine_steps = seed, report, FINE_STEPS[sde]
        process = ladder.config.process
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
        self.images = {"reference": reference}
        self.rows: list[Row] = []
        self.reports: dict[str, EvaluationReport] = {}
        self.levels: dict[str, tuple[int, ...]] = {}

    def measure_euler(self, steps: int) -> Row:
        """Euler on the finest level alone, one evaluation a step."""
        method, solver = f"Euler {steps} steps", diffrax.Euler()
        self.report(method)
        # Every m-th time of the fine grid, so that all see one Brownian path.
        run = _compiled(solver, self.fine[:: self.fine_steps // steps], self.terms, self.y0, _REPEATS)
        end, _, seconds = run(solver)
        return self._add(method, end, seconds, float(steps), None, self.seed)

    def measure_plan(self, method: str, plan: Plan, seeds: int) -> Row:
        """A plan with several seeds of its coins; returns the last one's row."""
        record = {"record": len(plan.ts) - 1} if len(plan.levels) > 1 else {}
        solvers = [plan.solver(key=jr.key(self.seed + i), **record) for i in range(seeds)]
        run = _compiled(solvers[0], _within(self.fine, plan), plan.terms(self.terms), self.y0, _REPEATS)
        rows = []
        for i, solver in enumerate(solvers):
            self.report(method)
            end, state, seconds = run(solver)
            evaluations = plan.cost
            if record and isinstance(solver, AbstractMultilevelSolver):
                counted = evaluation_report(state)
                evaluations = counted.finest_evaluations
                self.reports.setdefault(method, counted)
                self.levels.setdefault(method, plan.levels)
            rows.append(self._add(method, end, seconds, evaluations, plan.error, self.seed + i))
        return rows[-1]

    def _add(
        self,
        method: str,
        end: np.ndarray,
        seconds: float,
        evaluations: float,
        predicted: float | None,
        seed: int,
    ) -> Row:
        squares = np.mean((end - self.images["reference"]) ** 2, axis=tuple(range(1, end.ndim)))
        error, median = float(np.sqrt(np.mean(squares))), float(np.sqrt(np.median(squares)))
        self.images.setdefault(method, end)
        self.rows.append(Row(method, error, median, predicted, evaluations, seconds, seed))
        return self.rows[-1]


def _within(fine: Float[Array, " times"], plan: Plan) -> Float[Array, " steps"]:
    """The plan's times as entries of the fine grid, of which the noise's path knows the exact values."""
    places = np.abs(np.asarray(fine)[None, :] - plan.ts[:, None]).argmin(axis=1)
    return fine[places]
