"""The main job: images by ML-EM beside Euler on the finest level, from the same noise.

Only the comparison is here; tables, pictures and files are `_cli.py`'s.
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

    Straight lines between the points in logarithms; beyond the last point, the line through the last
    two is continued (first-order methods are straight there).
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
    """A function of a solver (of this one's kind) that solves and says the end images, the solver's
    state and the seconds; compilation is done before it is returned."""

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
    tell: Callable[[str], None],
) -> Comparison:
    """Draws the same images by every method and measures error, evaluations and seconds of each.

    **Arguments:**

    - `seed` of the noise and, added to 0, 1, ..., of the coins; `samples`, images in the one batch.
    - `budget` of ML-EM in finest-level evaluations, or the `error` that it should reach; `in_seconds`, as for
      [`mlem_jax.make_plan`][].
    - `tell`, called with a word before each method.

    Raises `ValueError`, before any image is drawn, for a budget or an error that cannot be met.
    """
    tell("planning")
    plan = ladder.plan(budget=budget, error=error, sde=sde, in_seconds=in_seconds)
    plans = [("ML-EM default coins", plan, 1)]
    # The paper's coins at the same cost; a plan left free would rather not toss them.
    every_level = tuple(range(len(ladder.networks)))
    try:
        calibration = ladder.calibration(sde=sde)
        made = calibration.plan(
            budget=plan.cost, coins=IndependentCoins(), levels=every_level, in_seconds=in_seconds
        )
        plans.insert(0, ("ML-EM independent coins", made, COIN_SEEDS))
    except ValueError:
        tell("no comparison with independent coins: all levels together cost more than the plan")

    process = ladder.config.process
    noise_key, path_key = jr.split(jr.key(seed))
    y0 = process.s_max * jr.normal(noise_key, (samples, *ladder.config.shape))
    fine = process.grid(FINE_STEPS[sde])
    terms: Any = ladder.term(sde=sde)
    if sde:
        path = GridBrownianPath(fine, y0.shape, key=path_key)
        terms = diffrax.MultiTerm(terms, reverse_diffusion(path))

    def solver_run(solver: diffrax.AbstractSolver, steps: int, repeats: int = _REPEATS) -> Callable[..., Any]:
        # Every m-th time of the fine grid, so that all see one Brownian path.
        return _compiled(solver, fine[:: FINE_STEPS[sde] // steps], terms, y0, repeats)

    tell("reference")
    reference_solver = diffrax.Euler() if sde else diffrax.Heun()
    reference, _, _ = solver_run(reference_solver, FINE_STEPS[sde], 1)(reference_solver)
    images = {"reference": reference}
    rows: list[Row] = []
    reports: dict[str, EvaluationReport] = {}
    levels: dict[str, tuple[int, ...]] = {}

    def measure(
        method: str, solver: diffrax.AbstractSolver, run: Callable, coin_seed: int, plan: Plan | None = None
    ) -> None:
        tell(method)
        end, state, seconds = run(solver)
        if isinstance(solver, AbstractMultilevelSolver):
            report = evaluation_report(state)
            evaluations = report.finest_evaluations
            reports.setdefault(method, report)
            levels.setdefault(method, plan.levels if plan is not None else ())
        else:
            evaluations = float(method.split()[1]) if plan is None else plan.cost
        squares = np.mean((end - reference) ** 2, axis=tuple(range(1, end.ndim)))
        rms, median = float(np.sqrt(np.mean(squares))), float(np.sqrt(np.median(squares)))
        images.setdefault(method, end)
        predicted = None if plan is None else plan.error
        rows.append(Row(method, rms, median, predicted, evaluations, seconds, coin_seed))

    for steps in EULER_STEPS:
        euler = diffrax.Euler()
        measure(f"Euler {steps} steps", euler, solver_run(euler, steps), seed)

    for method, made, seeds in plans:
        record = len(made.ts) - 1
        settings = {"record": record} if len(made.levels) > 1 else {}
        solvers = [made.solver(key=jr.key(seed + i), **settings) for i in range(seeds)]
        run = _compiled(solvers[0], _within(fine, made), made.terms(terms), y0, _REPEATS)
        for i, solver in enumerate(solvers):
            measure(method, solver, run, seed + i, made)
    ours = rows[-1]
    euler_rows = [row for row in rows if row.method.startswith("Euler")]

    def speedup(measured: str) -> dict[str, float]:
        errors = [getattr(row, measured) for row in euler_rows]
        return {
            unit: equivalent_cost(errors, [getattr(row, unit) for row in euler_rows], getattr(ours, measured))
            / getattr(ours, unit)
            for unit in ("finest_evaluations", "seconds")
        }

    return Comparison(rows, speedup("error"), speedup("median_error"), plan, images, reports, levels)


def _within(fine: Float[Array, " times"], plan: Plan) -> Float[Array, " steps"]:
    """The plan's times as entries of the fine grid, of which the noise's path knows the exact values."""
    places = np.abs(np.asarray(fine)[None, :] - plan.ts[:, None]).argmin(axis=1)
    return fine[places]
