"""The problems, batches and methods of the studies.

A *problem* (`Shared`) is an ODE or SDE with its levels. A *batch* has initial states and a Brownian path. A *method*
with its *setting* makes from a batch a call that returns end states and their cost. `_runs.py` tunes and measures
methods.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
from _rivals import march, Path, places_in, Step, StepNoise
from jaxtyping import Array, Float, PRNGKeyArray

import mlem_jax as ml
from mlem_jax.diffusion import AbstractProcess


class Shared(NamedTuple):
    """A problem whose whole batch is one state.

    - `levels`: cheapest first, for states `(n, *shape)`; `costs`: of an evaluation, in evaluations of the finest level.
    - `ts`: the finest grid, on which Brownian paths are defined.
    - `diffusion`: a module of the time alone, or `None` for an ODE.
    - `scale`: standard deviation of the initial states, which are normal.
    - `weights`: see `_rivals.Path`.
    """

    name: str
    levels: tuple[Callable, ...]
    costs: tuple[float, ...]
    ts: Float[Array, " times"]
    diffusion: Any
    shape: tuple[int, ...]
    scale: float
    weights: Float[Array, "cells 2"] | None = None


class Batch(NamedTuple):
    """Initial states, one Brownian path in the forms for diffrax and for the rivals, and the reference end states."""

    y0: Array
    brownian: ml.GridBrownianPath | None
    path: Path | None
    reference: np.ndarray


def draw(problem: Shared, key: PRNGKeyArray, size: int, reference: Callable[[Batch], Any]) -> Batch:
    """A batch and its reference."""
    keys = jr.split(key, 3)
    y0 = problem.scale * jr.normal(keys[0], (size, *problem.shape))
    brownian = path = None
    if problem.diffusion is not None:
        brownian = ml.GridBrownianPath(problem.ts, y0.shape, key=keys[1])
        path = record(problem, brownian, keys[2])
    batch = Batch(y0, brownian, path, np.zeros(0))
    return batch._replace(reference=np.asarray(reference(batch)))


@eqx.filter_jit
def record(problem: Shared, brownian: ml.GridBrownianPath, key: PRNGKeyArray) -> Path:
    """The increments of the path on its cells, and Lévy areas drawn from their distribution given the increments."""
    ts = problem.ts
    lengths = jnp.abs(jnp.diff(ts))
    cells = jax.lax.map(lambda pair: brownian.evaluate(*pair), (ts[:-1], ts[1:]))
    assert isinstance(cells, Array)
    size = jnp.sqrt(lengths / 12).reshape(-1, *[1] * (cells.ndim - 1))
    weights = jnp.zeros((len(lengths), 2)) if problem.weights is None else problem.weights
    return Path(ts, cells, size * jr.normal(key, cells.shape), weights)


class Prepared(NamedTuple):
    """`call` runs the method and is timed; `read` converts its result to end states and cost."""

    call: Callable[[], Any]
    read: Callable[[Any], tuple[Array, float]]


class Method(NamedTuple):
    """One method with one setting.

    - `prepare`: a function of a batch and a seed.
    - `random`: whether the result depends on the seed.
    - `steps`, `grid`: number of steps and name of their grid, if they are known.
    - `multilevel`: whether several levels are combined by the library.
    """

    name: str
    setting: str
    prepare: Callable[[Batch, int], Prepared]
    random: bool = False
    steps: int | None = None
    grid: str | None = None
    multilevel: bool = False


def marching(name: str, setting: str, step: Step, ts: Any, *, grid: str | None = None) -> Method:
    """A method of `_rivals.py`, with the name of its grid, if several are compared."""

    def prepare(batch: Batch, seed: int) -> Prepared:
        times = np.asarray(ts)
        if batch.path is not None:
            fine = np.asarray(batch.path.ts)
            times = fine[places_in(fine, times)]
        call, cost = march(step, times, batch.y0, path=batch.path)
        return Prepared(call, lambda end: (end, cost))

    return Method(name, setting, prepare, steps=len(ts) - 1, grid=grid)


def on_grids(
    name: str, step: Step, process: AbstractProcess, counts: Sequence[int], grids: Sequence[str]
) -> list[Method]:
    """A method of `_rivals.py` for each number of steps and each grid of a diffusion process."""
    return [
        marching(name, f"{n} steps, {grid}", step, np.asarray(process.grid(n, spacing=grid)), grid=grid)
        for grid in grids
        for n in counts
    ]


@eqx.filter_jit
def solve(terms: Any, solver: Any, ts: Array, y0: Array) -> tuple[Array, Any]:
    """The end state and the solver state of a solve that steps through `ts`."""
    sol = diffrax.diffeqsolve(
        terms,
        solver,
        ts[0],
        ts[-1],
        None,
        y0,
        stepsize_controller=diffrax.StepTo(ts),
        saveat=diffrax.SaveAt(t1=True, solver_state=True),
        max_steps=len(ts) - 1,
    )
    assert sol.ys is not None
    return sol.ys[0], sol.solver_state


class _Noise(eqx.Module):
    """The diffusion as a linear operator for diffrax."""

    size: Callable[[Array], Array]

    def __call__(self, t: Any, y: Array, args: Any) -> lx.DiagonalLinearOperator:
        return lx.DiagonalLinearOperator(jnp.broadcast_to(self.size(jnp.asarray(t, y.dtype)), y.shape))


def additive_noise(problem: Shared, path: diffrax.AbstractPath) -> diffrax.ControlTerm:
    """The term of the noise, for a Brownian path."""
    return diffrax.ControlTerm(_Noise(problem.diffusion), path)


def multilevel(
    problem: Shared,
    name: str,
    setting: str,
    make_solver: Callable[[PRNGKeyArray], diffrax.AbstractSolver],
    ts: Any,
    levels: Sequence[int],
    *,
    random: bool,
) -> Method:
    """A solver of the library on some of the levels."""
    kept = [problem.levels[k] for k in levels]
    costs = tuple(problem.costs[k] for k in levels)
    fine = np.asarray(problem.ts)

    def prepare(batch: Batch, seed: int) -> Prepared:
        terms: Any = ml.MultilevelTerm(*kept, costs=costs)
        if batch.brownian is not None:
            terms = diffrax.MultiTerm(terms, additive_noise(problem, batch.brownian))
        # Times of the fine grid, on which the Brownian path is defined.
        grid, solver = jnp.asarray(fine[places_in(fine, ts)]), make_solver(jr.key(seed))

        def read(output: Any) -> tuple[Array, float]:
            end, state = output
            return end, ml.evaluation_report(state).finest_evaluations * costs[-1]

        return Prepared(lambda: solve(terms, solver, grid, batch.y0), read)

    return Method(name, setting, prepare, random, steps=len(ts) - 1, multilevel=len(kept) > 1)


class _Recorded(diffrax.AbstractBrownianPath):
    """The noise of each step of one grid, with its Lévy area, in forward time."""

    ts: Array
    steps: StepNoise
    levy_area: type

    def __init__(self, ts: Array, steps: StepNoise):
        self.ts, self.steps, self.levy_area = ts, steps, diffrax.SpaceTimeLevyArea

    @property
    def t0(self) -> Any:
        return self.ts[0]

    @property
    def t1(self) -> Any:
        return self.ts[-1]

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        n = jnp.argmin(jnp.abs(self.ts[:-1] - t0))
        if not use_levy:
            return self.steps.w[n]
        return diffrax.SpaceTimeLevyArea(dt=t1 - t0, W=self.steps.w[n], H=self.steps.area[n])


class _Turned(eqx.Module):
    """A drift or a diffusion in the time `sign t`."""

    inner: Callable
    sign: float = eqx.field(static=True)
    factor: float = eqx.field(static=True)

    def __call__(self, t: Any, y: Array, args: Any) -> Any:
        return self.factor * self.inner(self.sign * t, y, args)


def stochastic_runge_kutta(problem: Shared, name: str, setting: str, solver: Any, ts: Any) -> Method:
    """One of diffrax's solvers for additive noise, on the finest level, with the Lévy areas of the same path. These
    solvers need increasing times, so a problem with decreasing times is solved in the time `-t`."""
    stages = {"SEA": 1, "ShARK": 2, "SRA1": 2}[type(solver).__name__]

    def prepare(batch: Batch, seed: int) -> Prepared:
        assert batch.path is not None
        places = places_in(np.asarray(batch.path.ts), ts)
        grid = batch.path.ts[places]
        sign = 1.0 if grid[0] < grid[-1] else -1.0
        noise = eqx.filter_jit(jax.vmap(batch.path.over))(jnp.asarray(places[:-1]), jnp.asarray(places[1:]))
        diffusion = _Turned(_Noise(problem.diffusion), sign, 1.0)
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(_Turned(problem.levels[-1], sign, sign)),
            diffrax.ControlTerm(diffusion, _Recorded(sign * grid, noise)),
        )
        cost = float(stages * (len(places) - 1))
        return Prepared(lambda: solve(terms, solver, sign * grid, batch.y0)[0], lambda end: (end, cost))

    return Method(name, setting, prepare, steps=len(ts) - 1)
