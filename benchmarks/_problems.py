"""Problems of the studies: the terms of a trajectory, times, and initial states."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

import mlem_jax as ml
from mlem_jax._term import FixedTerms, with_levels
from mlem_jax.diffusion import Ladder, NoisyTerms


class Problem(NamedTuple):
    """`make_terms(key)` returns the terms of one trajectory, for an SDE with noise of this key; `draw(key, n)` returns
    `n` initial states; `ts` is the finest grid."""

    name: str
    make_terms: Callable[[PRNGKeyArray], Any]
    ts: Float[Array, " times"]
    draw: Callable[[PRNGKeyArray, int], Any]


class RandomFeatures(eqx.Module):
    """The drift `-y + sum_j 2**-j phi_j(y)` with random-feature fields `phi_j` of unit size, whose widths grow by
    factors of `2**gamma`. By construction `|D_k| ~ 2**-k` and `C_k ~ 2**(gamma k)`, and the costs are those of real
    matrix products."""

    inner: tuple[Array, ...]
    outer: tuple[Array, ...]
    phase: tuple[Array, ...]

    def __call__(self, t: Any, y: Array, args: Any) -> Array:
        drift = -y
        for j, (a, b, c) in enumerate(zip(self.inner, self.outer, self.phase, strict=True)):
            drift = drift + 2.0**-j * b @ jnp.sin(a @ y + c + 2 * t)
        return drift


def random_feature_levels(
    *, gamma: float, num_levels: int, dim: int = 16, width: int = 8, seed: int = 0
) -> tuple[tuple[RandomFeatures, ...], tuple[float, ...]]:
    """Levels, cheapest first, and their costs (multiplications)."""
    inner, outer, phase, widths = [], [], [], []
    for j in range(num_levels):
        m = max(1, round(width * 2 ** (gamma * j)))
        keys = jr.split(jr.fold_in(jr.key(seed), j), 3)
        inner.append(jr.normal(keys[0], (m, dim)) / dim**0.5)
        # A sum of m terms of random sign has size sqrt(m); sin has a mean square of one half.
        outer.append(jr.normal(keys[1], (dim, m)) * (2.0 / m) ** 0.5)
        phase.append(jr.uniform(keys[2], (m,), maxval=2 * jnp.pi))
        widths.append(m)
    levels = tuple(
        RandomFeatures(tuple(inner[: k + 1]), tuple(outer[: k + 1]), tuple(phase[: k + 1]))
        for k in range(num_levels)
    )
    return levels, tuple(float(sum(widths[: k + 1]) * 2 * dim) for k in range(num_levels))


class _Noisy(eqx.Module):
    """Terms with additive noise and a Brownian path that depends on the key."""

    term: ml.MultilevelTerm
    ts: Array
    dim: int = eqx.field(static=True)
    size: float = 0.5

    def __call__(self, key: PRNGKeyArray) -> Any:
        path = ml.GridBrownianPath(self.ts, (self.dim,), key=key)
        noise = diffrax.ControlTerm(lambda t, y, args: self.size * jnp.eye(self.dim), path)
        return diffrax.MultiTerm(self.term, noise)


class PlannedTerms(eqx.Module):
    """Terms with the levels and costs of a plan."""

    make_terms: Callable[[PRNGKeyArray], Any]
    levels: tuple[int, ...] = eqx.field(static=True)
    costs: tuple[float, ...] = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray) -> Any:
        return with_levels(self.make_terms(key), self.levels, costs=np.array(self.costs))


def random_features(*, gamma: float, num_levels: int = 5, sde: bool = False, steps: int = 256) -> Problem:
    """An ODE or an SDE with additive noise in 16 dimensions, over two units of time."""
    levels, costs = random_feature_levels(gamma=gamma, num_levels=num_levels)
    ts = jnp.linspace(0.0, 2.0, steps + 1)
    term = ml.MultilevelTerm(*levels, costs=costs)
    make = _Noisy(term, ts, 16) if sde else FixedTerms(term)
    name = f"random features, gamma {gamma:g}, {'SDE' if sde else 'ODE'}"
    return Problem(name, make, ts, lambda key, n: jr.normal(key, (n, 16)))


def images(ladder: Ladder, *, sde: bool = False, steps: int = 128) -> Problem:
    """Sampling from a ladder of networks."""
    process, shape = ladder.config.process, ladder.config.shape
    ts = process.grid(steps)
    term = ladder.term(sde=sde)
    make = NoisyTerms(term, ts, shape) if sde else FixedTerms(term)
    name = f"{ladder.config.name}, {'reverse SDE' if sde else 'probability flow'}"
    return Problem(name, make, ts, lambda key, n: process.s_max * jr.normal(key, (n, *shape)))


@eqx.filter_jit
def ends(
    solver: diffrax.AbstractSolver, make_terms: Any, ts: Array, y0s: Array, args: Any, noise_keys: Array
) -> tuple[Array, Any]:
    """End states of a batch of trajectories, and the solver state of the first one."""

    def one(y0: Array, key: Array) -> tuple[Array, Any]:
        sol = diffrax.diffeqsolve(
            make_terms(key),
            solver,
            ts[0],
            ts[-1],
            None,
            y0,
            args,
            stepsize_controller=diffrax.StepTo(ts),
            saveat=diffrax.SaveAt(t1=True, solver_state=True),
            max_steps=ts.shape[0] - 1,
        )
        assert sol.ys is not None
        return sol.ys[-1], sol.solver_state

    ys, states = jax.vmap(one)(y0s, noise_keys)
    return ys, jax.tree.map(lambda leaf: leaf[0], states)
