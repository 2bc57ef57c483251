"""The particles of `notebooks/particles.py` as a problem: rings of charged beads with stiff springs and thermal noise.
The levels have the repulsion of neighbours; of the rest of the ring and the centres of the other rings; and of all
pairs."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
from _hierarchies import Constant
from _methods import Batch, marching, Method, record, Shared, stochastic_runge_kutta
from _rivals import Euler, Held, Plain
from jaxtyping import Array, Float, PRNGKeyArray

import mlem_jax as ml

STIFFNESS, TEMPERATURE, TRAP, CHARGE, SCREENING, THICKNESS = 25.0, 0.5, 0.1, 3.0, 10.0, 2.0
NEIGHBOURS = (1, 2)
END = 1.0


def strength(squared: Array) -> Array:
    """The screened repulsive force between two beads, over their distance."""
    r = jnp.sqrt(squared + THICKNESS**2)
    return CHARGE * jnp.exp(-r / SCREENING) * (1 / r + 1 / SCREENING) / r**2


def repulsion(beads: Array, sources: Array, weights: Array | float = 1.0) -> Array:
    """The force of all sources on each bead; both `(2, ..., n)`."""
    x, y = (b[..., :, None] - s[..., None, :] for b, s in zip(beads, sources, strict=True))
    pairs = weights * strength(x**2 + y**2)
    return pairs.sum(-1)[None] * beads - jnp.einsum("...nm,c...m->c...n", pairs, sources)


def along_the_ring(rings: Float[Array, "2 rings beads"]) -> Float[Array, "2 rings beads"]:
    total = jnp.zeros_like(rings)
    for shift in NEIGHBOURS:
        away = rings - jnp.roll(rings, -shift, -1)
        force = strength(jnp.sum(away**2, 0))[None] * away
        total += force - jnp.roll(force, shift, -1)
    return total


class Force(eqx.Module):
    """The drift at one level, of a batch of states `(n, 2, rings * beads)`: 0 for the springs, the trap and the
    neighbours, 1 with the rest of the ring and the other rings as points, 2 with all pairs."""

    rings: int = eqx.field(static=True)
    level: int = eqx.field(static=True)

    def __call__(self, t: Any, y: Array, args: Any) -> Array:
        return jax.vmap(self.one)(y)

    def one(self, y: Float[Array, "2 n"]) -> Float[Array, "2 n"]:
        rings = y.reshape(2, self.rings, -1)
        link = jnp.roll(rings, -1, -1) - rings
        length = jnp.sqrt(jnp.sum(link**2, 0) + 1e-6)
        tension = STIFFNESS * (1 - 1 / length)[None] * link
        listed = along_the_ring(rings)
        near = (tension - jnp.roll(tension, 1, -1) + listed).reshape(y.shape) - TRAP * y
        if self.level == 0:
            return near
        if self.level == 2:
            return near + repulsion(y, y) - listed.reshape(y.shape)
        beads = rings.shape[2]
        apart = jnp.abs(jnp.arange(beads)[:, None] - jnp.arange(beads)[None])
        apart = jnp.minimum(apart, beads - apart)
        own = repulsion(rings, rings, (apart > NEIGHBOURS[-1]).astype(y.dtype)[None])
        others = beads * (1 - jnp.repeat(jnp.eye(self.rings, dtype=y.dtype), beads, axis=0))
        return near + own.reshape(y.shape) + repulsion(y, rings.mean(2), others)


def initial_states(
    key: PRNGKeyArray, rings_to_a_side: int, beads: int, count: int
) -> Float[Array, "count 2 n"]:
    """Circles around the points of a square lattice, with random shifts, rotations and displacements."""
    rings = rings_to_a_side**2

    def one(key: PRNGKeyArray) -> Array:
        keys = jr.split(key, 3)
        sides = 12.0 * (rings_to_a_side - 1) * jnp.linspace(-0.5, 0.5, rings_to_a_side)
        centres = jnp.stack(jnp.meshgrid(sides, sides)).reshape(2, rings, 1)
        centres += 0.5 * jr.normal(keys[0], centres.shape)
        turns = jnp.linspace(0.0, 1.0, beads, endpoint=False)[None] + jr.uniform(keys[1], (rings, 1))
        angle = 2 * jnp.pi * turns
        circle = beads / (2 * jnp.pi) * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        return (centres + circle + 0.1 * jr.normal(keys[2], circle.shape)).reshape(2, -1)

    return jax.vmap(one)(jr.split(key, count))


class OneTrajectory(eqx.Module):
    """The terms of one trajectory as a function of its key, for `mlem_jax.calibrate`."""

    forces: tuple[Any, ...]
    ts: Array
    costs: tuple[float, ...] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray) -> diffrax.MultiTerm:
        noise = ml.GridBrownianPath(self.ts, self.shape, key=key)
        strength = lx.DiagonalLinearOperator(jnp.full(self.shape, (2 * TEMPERATURE) ** 0.5))
        levels = [lambda t, y, args, force=force: force.one(y) for force in self.forces]
        term = ml.MultilevelTerm(*levels, costs=self.costs)
        return diffrax.MultiTerm(term, diffrax.ControlTerm(lambda t, y, args: strength, noise))


def particles(rings_to_a_side: int, beads: int, steps: int) -> Shared:
    """Three levels, whose costs are their FLOPs as compiled, and a fine grid."""
    rings = rings_to_a_side**2
    forces, shape = tuple(Force(rings, level) for level in range(3)), (2, rings * beads)
    flops = []
    for force in forces:
        analysis = jax.jit(force.one).lower(jnp.zeros(shape)).compile().cost_analysis()
        assert analysis is not None
        flops.append(float(analysis["flops"]))
    costs = tuple(f / flops[-1] for f in flops)
    ts, noise = jnp.linspace(0.0, END, steps + 1), Constant((2 * TEMPERATURE) ** 0.5)
    return Shared("particles", forces, costs, ts, noise, shape, 1.0)


def draw_particles(problem: Shared, key: PRNGKeyArray, y0: Array) -> Batch:
    """A batch with these initial states. Its reference is the solution of all pairs by ShARK (strong order 3/2) on the
    fine grid."""
    keys = jr.split(key)
    brownian = ml.GridBrownianPath(problem.ts, y0.shape, key=keys[0])
    batch = Batch(y0, brownian, record(problem, brownian, keys[1]), np.zeros(0))
    accurate = stochastic_runge_kutta(problem, "", "", diffrax.ShARK(), problem.ts).prepare(batch, 0)
    return batch._replace(reference=np.asarray(accurate.read(accurate.call())[0]))


def rivals(
    problem: Shared, steps: tuple[int, ...], stages: tuple[int, ...], intervals: tuple[int, ...]
) -> list[Method]:
    """Euler on all pairs and on the middle level, diffrax's solvers of higher order on all pairs, and a cheap level
    with a held correction to all pairs."""
    (near, middle, finest), fine = problem.levels, np.asarray(problem.ts)
    found = []

    def grid(count: int) -> np.ndarray:
        return fine[:: (len(fine) - 1) // count]

    for level, name in ((2, "Euler, all pairs"), (1, "Euler, middle level")):
        drift = Plain(problem.levels[level], problem.costs[level])
        found += [marching(name, f"{n} steps", Euler(drift, problem.diffusion), grid(n)) for n in steps]
    for name, solver in (("SEA, all pairs", diffrax.SEA()), ("ShARK, all pairs", diffrax.ShARK())):
        found += [stochastic_runge_kutta(problem, name, f"{n} steps", solver, grid(n)) for n in stages]
    for cheap, number in ((near, 0), (middle, 1)):
        for interval in intervals:
            drift = Held(cheap, finest, (problem.costs[number], 1.0), jnp.asarray(interval))
            for n in steps:
                setting = f"level {number + 1}, every {interval} of {n} steps"
                found.append(marching("held correction", setting, Euler(drift, problem.diffusion), grid(n)))
    return found
