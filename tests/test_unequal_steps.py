"""MLAB2 on grids with close neighbours: its error beside Euler's."""

import diffrax
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


GRIDS = {
    "merged observations": merged(20),
    "alternating by 4": alternating(24, 4.0),
    "alternating by 100": alternating(24, 100.0),
}


@pytest.mark.parametrize(
    "ts",
    [
        grid if name == "merged observations" else pytest.param(grid, marks=pytest.mark.slow)
        for name, grid in GRIDS.items()
    ],
    ids=GRIDS.keys(),
)
def test_noise_is_not_extrapolated_over_long_steps(x64, ts):
    # dx = -5 x dt + dW, 400 paths (seed 5), against Euler with each step cut into 20.
    fine = np.append(
        np.concatenate([np.linspace(a, b, 21)[:-1] for a, b in zip(ts[:-1], ts[1:], strict=True)]), ts[-1]
    )

    def ends(solver, grid, stride):
        def one(key):
            noise = ml.GridBrownianPath(jnp.asarray(fine), (), key=key)
            terms = diffrax.MultiTerm(
                ml.MultilevelTerm(lambda t, y, args: -5 * y),
                diffrax.ControlTerm(lambda t, y, args: jnp.array(1.0), noise),
            )
            controller = diffrax.StepTo(jnp.asarray(grid))
            settings = dict(saveat=diffrax.SaveAt(t1=True), stepsize_controller=controller, t1=grid[-1])
            return solve(terms, solver, jnp.asarray(1.0), **settings).ys[0]

        return jax.jit(jax.vmap(one))(jr.split(jr.key(5), 400))

    exact = ends(diffrax.Euler(), fine, 1)
    errors = [
        float(jnp.sqrt(jnp.mean((ends(s, ts, 20) - exact) ** 2))) for s in (ml.MLAB2([1.0]), diffrax.Euler())
    ]
    assert errors[0] < 1.2 * errors[1], errors


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
