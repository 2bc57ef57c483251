"""MLAB2 on grids with close neighbours: its error beside Euler's."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import solve

import mlem_jax as ml


def merged(steps):
    """A regular grid with four times of observations close to its points."""
    return np.sort(np.append(np.linspace(0, 1, steps + 1), [0.1501, 0.3002, 0.50005, 0.7501]))


def alternating(steps, ratio):
    return np.append(0, np.cumsum(np.tile([1.0, ratio], steps // 2))) / (steps // 2 * (1 + ratio))


def merged_at_random(steps, extra, seed):
    times = np.random.default_rng(seed).random(extra)
    return np.sort(np.append(np.linspace(0, 1, steps + 1), times))


def irregular(seed):
    draw = np.random.default_rng(seed)
    lengths = np.exp(draw.normal(size=24) * draw.uniform(0.2, 1.2))
    return np.append(0, np.cumsum(lengths)) / lengths.sum()


# All of 24 steps, so that a solver is compiled once.
GRIDS = {
    "merged observations": merged(20),
    "random observations": merged_at_random(20, 4, 0),
    "many random observations": merged_at_random(12, 12, 0),
    # Steps grow over several steps, each by more than 1.52: with factors that follow them 1.34 times Euler's error.
    "irregular": irregular(29),
    "alternating by 1.4": alternating(24, 1.4),
    "alternating by 2": alternating(24, 2.0),
    "alternating by 4": alternating(24, 4.0),
    "alternating by 100": alternating(24, 100.0),
}


@eqx.filter_jit
def ends(solver, fine, grid, keys):
    """End states of dx = -5 x dt + dW from 1, one path for each key."""

    def one(key):
        noise = ml.GridBrownianPath(fine, (), key=key)
        terms = diffrax.MultiTerm(
            ml.MultilevelTerm(lambda t, y, args: -5 * y),
            diffrax.ControlTerm(lambda t, y, args: jnp.array(1.0), noise),
        )
        controller = diffrax.StepTo(grid)
        settings = dict(saveat=diffrax.SaveAt(t1=True), stepsize_controller=controller, t1=grid[-1])
        return solve(terms, solver, jnp.asarray(1.0), **settings).ys[0]

    return jax.vmap(one)(keys)


@pytest.mark.parametrize("ts", GRIDS.values(), ids=GRIDS.keys())
def test_noise_is_not_extrapolated_over_long_steps(x64, ts):
    # 400 paths (seed 5), against Euler with each step cut into 20.
    cut = [np.linspace(a, b, 21)[:-1] for a, b in zip(ts[:-1], ts[1:], strict=True)]
    fine, grid = jnp.asarray(np.append(np.concatenate(cut), ts[-1])), jnp.asarray(ts)
    keys = jr.split(jr.key(5), 400)
    exact = ends(diffrax.Euler(), fine, fine, keys)
    ours, eulers = (
        float(jnp.sqrt(jnp.mean((ends(solver, fine, grid, keys) - exact) ** 2)))
        for solver in (ml.MLAB2([1.0]), diffrax.Euler())
    )
    assert ours < 1.2 * eulers, (ours, eulers)


def test_a_jump_between_close_neighbours_is_not_extrapolated():
    # y' = -y + F with a force from 0.50005 on, a point of the grid on both sides.
    def drift(rate):
        return lambda t, y, args: -rate * y + jnp.where(t > 0.50005, 1.0, 0.0)

    ts = jnp.asarray(np.append(np.linspace(0, 0.5, 6), np.linspace(0.5001, 1, 6)))
    exact = np.exp(-1) + 1 - np.exp(-0.5)
    for term, solver in (
        (ml.MultilevelTerm(drift(1.0)), ml.MLAB2([1.0])),
        (ml.MultilevelTerm(drift(1.0), drift(1.1)), ml.MLAB2([1.0, 1.0])),
    ):
        exact = {1: np.exp(-1) + 1 - np.exp(-0.5), 2: np.exp(-1.1) + (1 - np.exp(-0.55)) / 1.1}[
            len(term.levels)
        ]
        settings = dict(saveat=diffrax.SaveAt(t1=True), stepsize_controller=diffrax.StepTo(ts))
        ours, eulers = (solve(term, s, jnp.asarray(1.0), **settings).ys[0] for s in (solver, diffrax.Euler()))
        assert abs(ours - exact) < 1.2 * abs(eulers - exact), (ours, eulers, exact)
