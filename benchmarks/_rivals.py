"""Small reference implementations of the methods with which ML-EM is compared.

A *drift* decides which level is evaluated: one level (`Plain`), a small level first and a large one later (`Switched`),
or a cheap level plus a held correction (`Held`). A *step* advances the state: `Euler`, `Heun`, `DPMSolver` (with
`corrector=True` UniPC), `SDEDPMSolver`. Every step works with every drift, and `march` runs them on any grid with one
compilation. The last two steps are for diffusion models in the variables `(y, s)` of `mlem_jax.diffusion`, in which the
data prediction is `y - s eps_hat`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Level = Callable[[Any, Array, Any], Array]


class Plain(eqx.Module):
    """One level. Here and below, `cost` is that of an evaluation, in evaluations of the finest level."""

    level: Level
    cost: float = eqx.field(static=True)

    def start(self, y: Array) -> Any:
        return ()

    def __call__(self, n: Array, t: Array, y: Array, memory: Any) -> tuple[Array, Any]:
        return self.level(t, y, None), memory

    def spent(self, starts: np.ndarray) -> float:
        """The cost of evaluations at these times."""
        return self.cost * len(starts)


class Switched(eqx.Module):
    """A small level while `t > until`, and a large one afterwards (T-Stitch)."""

    small: Level
    large: Level
    costs: tuple[float, float] = eqx.field(static=True)
    until: Float[Array, ""] = eqx.field(converter=jnp.asarray)

    def start(self, y: Array) -> Any:
        return ()

    def __call__(self, n: Array, t: Array, y: Array, memory: Any) -> tuple[Array, Any]:
        # lax.cond hashes its branches, so these are functions and not modules, which have no hash.
        branches = [lambda f=f: f(t, y, None) for f in (self.small, self.large)]
        return jax.lax.cond(t > self.until, *branches), memory

    def spent(self, starts: np.ndarray) -> float:
        early = int(np.sum(starts > float(self.until)))
        return self.costs[0] * early + self.costs[1] * (len(starts) - early)


class Held(eqx.Module):
    """A cheap level in every step, plus its difference to the fine level, which is evaluated every `interval` steps and
    held in between (a zero-order hold, as DeepCache holds features)."""

    cheap: Level
    fine: Level
    costs: tuple[float, float] = eqx.field(static=True)
    interval: Int[Array, ""] = eqx.field(converter=jnp.asarray)

    def start(self, y: Array) -> Any:
        return jnp.zeros_like(y)

    def __call__(self, n: Array, t: Array, y: Array, memory: Any) -> tuple[Array, Any]:
        rough = self.cheap(t, y, None)

        def correction() -> Array:
            return self.fine(t, y, None) - rough

        held = jax.lax.cond(n % self.interval == 0, correction, lambda: memory)
        return rough + held, held

    def spent(self, starts: np.ndarray) -> float:
        corrections = -(-len(starts) // int(self.interval))
        return self.costs[0] * len(starts) + self.costs[1] * corrections


Drift = Plain | Switched | Held


class StepNoise(NamedTuple):
    """The noise of one step: the Brownian increment, the space-time Lévy area `H` (the mean over the step of the path
    minus its chord), and the increment with the weights of `Path`."""

    w: Array
    area: Array
    weighted: Array


class Euler(eqx.Module):
    """Euler's method, or with a `diffusion` that depends on time only the Euler-Maruyama method."""

    drift: Drift
    diffusion: Callable[[Array], Array] | None = None

    def start(self, y: Array) -> Any:
        return self.drift.start(y)

    def __call__(
        self, n: Array, t0: Array, t1: Array, noise: StepNoise | None, y: Array, memory: Any
    ) -> tuple[Array, Any]:
        value, memory = self.drift(n, t0, y, memory)
        end = y + (t1 - t0) * value
        if self.diffusion is not None:
            assert noise is not None
            end = end + self.diffusion(t0) * noise.w
        return end, memory

    def spent(self, starts: np.ndarray) -> float:
        return self.drift.spent(starts)


class Heun(eqx.Module):
    """Heun's method for an ODE: two evaluations a step, second order."""

    drift: Plain

    def start(self, y: Array) -> Any:
        return ()

    def __call__(
        self, n: Array, t0: Array, t1: Array, noise: None, y: Array, memory: Any
    ) -> tuple[Array, Any]:
        first, _ = self.drift(n, t0, y, ())
        second, _ = self.drift(n, t1, y + (t1 - t0) * first, ())
        return y + 0.5 * (t1 - t0) * (first + second), memory

    def spent(self, starts: np.ndarray) -> float:
        return 2 * self.drift.spent(starts)


class _Past(NamedTuple):
    """The last two data predictions, the state and time of the last step, and the time of the step before it."""

    drift: Any
    last: Array
    before: Array
    y: Array
    t: Array
    t_before: Array


class DPMSolver(eqx.Module):
    """DPM-Solver++(2M) for the probability flow (Lu et al. 2022): exponential Adams-Bashforth of second order
    on the data prediction, in `lambda = -log s`; the first step is of first order.

    With `corrector` it is UniPC of order 2 (Zhao et al. 2023, variant `B_2`), which corrects each state with the
    evaluation at that state before the next step. Both need one evaluation per step.
    """

    drift: Drift
    corrector: bool = eqx.field(static=True, default=False)

    def start(self, y: Array) -> _Past:
        zero = jnp.zeros_like(y)
        return _Past(self.drift.start(y), zero, zero, zero, jnp.ones(()), jnp.ones(()))

    def __call__(
        self, n: Array, t0: Array, t1: Array, noise: None, y: Array, memory: _Past
    ) -> tuple[Array, _Past]:
        eps, inner = self.drift(n, t0, y, memory.drift)
        clean = y - t0 * eps
        if self.corrector:
            y = jnp.where(n > 0, self._corrected(n, t0, clean, memory), y)
        slope = _slope(n, t0, t1, clean, memory)
        ratio = t1 / t0
        end = ratio * y + (1 - ratio) * (clean + 0.5 * slope)
        return end, _Past(inner, clean, memory.last, y, t0, memory.t)

    def _corrected(self, n: Array, t: Array, clean: Array, past: _Past) -> Array:
        h = jnp.where(n > 0, jnp.log(past.t / t), 1.0)
        grown = jnp.expm1(-h)
        # The moments that determine the two weights.
        first = (-grown / h - 1) / grown
        second = 2 * ((-grown / h - 1) / -h - 0.5) / grown
        r = jnp.where(n > 1, jnp.log(past.t / past.t_before) / h, -1.0)
        old = jnp.where(n > 1, (first - second) / (1 - r), 0.0)
        new = jnp.where(n > 1, first - old, 0.5)
        change = old * (past.before - past.last) / r + new * (clean - past.last)
        return (t / past.t) * past.y - grown * (past.last + change)

    def spent(self, starts: np.ndarray) -> float:
        return self.drift.spent(starts)


class SDEDPMSolver(eqx.Module):
    """SDE-DPM-Solver++(2M) for the reverse SDE (Lu et al. 2022) on a given Brownian path. The linear part and the noise
    are integrated exactly, and the data prediction is extrapolated as in `DPMSolver`. The drift is that of the reverse
    SDE, `2 eps_hat`; the weights of the noise are `exponential_weights`."""

    drift: Drift

    def start(self, y: Array) -> _Past:
        return DPMSolver(self.drift).start(y)

    def __call__(
        self, n: Array, t0: Array, t1: Array, noise: StepNoise, y: Array, memory: _Past
    ) -> tuple[Array, _Past]:
        twice, inner = self.drift(n, t0, y, memory.drift)
        clean = y - 0.5 * t0 * twice
        slope = _slope(n, t0, t1, clean, memory)
        ratio = (t1 / t0) ** 2
        end = ratio * y + (1 - ratio) * (clean + 0.5 * slope) + t1**2 * noise.weighted
        return end, _Past(inner, clean, memory.last, y, t0, memory.t)

    def spent(self, starts: np.ndarray) -> float:
        return self.drift.spent(starts)


def _slope(n: Array, t0: Array, t1: Array, clean: Array, past: _Past) -> Array:
    """The change of the data prediction over the next step, extrapolated from the last one; zero in the first step."""
    last = jnp.where(n > 0, jnp.log(past.t / t0), 1.0)
    return jnp.where(n > 0, jnp.log(t0 / t1) / last, 0.0) * (clean - past.last)


def exponential_weights(ts: Float[Array, " times"]) -> Float[Array, "cells 2"]:
    """The mean and the change over each cell of a decreasing grid of `sqrt(2 s) / s**2`, the weight of the noise of the
    reverse SDE after its linear part has been integrated."""
    mean = 2 * 2**0.5 * (ts[1:] ** -0.5 - ts[:-1] ** -0.5) / (ts[:-1] - ts[1:])
    return jnp.stack([mean, 2**0.5 * (ts[1:] ** -1.5 - ts[:-1] ** -1.5)], axis=1)


Step = Euler | Heun | DPMSolver | SDEDPMSolver


class Path(NamedTuple):
    """A Brownian path on a fine grid: the increment and Lévy area of each cell, and a weight that is linear in each
    cell, given by its mean and change."""

    ts: Float[Array, " times"]
    cells: Float[Array, "cells ..."]
    areas: Float[Array, "cells ..."]
    weights: Float[Array, "cells 2"]

    def over(self, first: Array, last: Array) -> StepNoise:
        """The noise from one grid point to a later one."""

        def add(i: Array, total: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            w, integral, weighted = total
            cell, h = self.cells[i], jnp.abs(self.ts[i + 1] - self.ts[i])
            integral = integral + h * (w + 0.5 * cell + self.areas[i])
            # By parts: the integral of (time - middle of the cell) dW is -h H.
            mean, change = self.weights[i]
            return w + cell, integral, weighted + mean * cell - change * self.areas[i]

        zero = jnp.zeros_like(self.cells[0])
        w, integral, weighted = jax.lax.fori_loop(first, last, add, (zero, zero, zero))
        length = jnp.abs(self.ts[last] - self.ts[first])
        return StepNoise(w, integral / length - 0.5 * w, weighted)


@eqx.filter_jit
def _march(step: Step, ts: Array, places: Array, path: Path | None, count: Array, y0: Array) -> Array:
    def body(n: Array, state: tuple[Array, Any]) -> tuple[Array, Any]:
        y, memory = state
        noise = None if path is None else path.over(places[n], places[n + 1])
        call: Any = step
        return call(n, ts[n], ts[n + 1], noise, y, memory)

    return jax.lax.fori_loop(0, count, body, (y0, step.start(y0)))[0]


def march(
    step: Step, ts: np.ndarray, y0: Array, *, path: Path | None = None
) -> tuple[Callable[[], Array], float]:
    """A function that returns the end state, and its cost in evaluations of the finest level.

    **Arguments:** `ts`, times of the steps; with a `path` they must be times of `path.ts`. Grids are padded to 1024
    steps or the next power of two, so that they share one compilation.
    """
    ts = np.asarray(ts, y0.dtype)
    count = len(ts) - 1
    capacity = max(1024, 2 ** (count - 1).bit_length())
    places = np.arange(count + 1) if path is None else places_in(np.asarray(path.ts), ts)
    fill = (0, capacity - count)
    padded = jnp.asarray(np.pad(ts, fill, mode="edge"))
    where = jnp.asarray(np.pad(places, fill, mode="edge"))
    number = jnp.asarray(count)
    return lambda: _march(step, padded, where, path, number, y0), step.spent(ts[:-1])


def places_in(fine: np.ndarray, ts: np.ndarray) -> np.ndarray:
    """The indices of the points of a fine grid that are nearest to some times, in order and without repetition."""
    found = np.abs(np.asarray(fine)[None, :] - np.asarray(ts)[:, None]).argmin(axis=1)
    return np.unique(found)
