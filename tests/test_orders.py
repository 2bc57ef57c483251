"""Orders of convergence: in the window between two firings at a fixed small step, and strong orders in the
step on stochastic equations with closed-form solutions."""

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import mlem, POLICIES, slope, solve

import mlem_jax as ml

T1 = diffrax.SaveAt(t1=True)

# --- orders in the window H between two firings, at a small fixed step ---

ORDERS = {"independent": 0.5, "nested": 0.5, "stratified": 1.5, "systematic": 1.0, "midpoint": 2.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDERS)
def test_order_in_the_window_of_a_force(name, x64):
    # RMS over 200 coin seeds (seed 6; the midpoint pattern needs one) of the distance to p = 1 at the same
    # steps, for windows of 15, 45 and 135 of 2025 steps. Odd, so that a step lies at the middle. The
    # increment is a force on the velocity: it does not act on itself, D' D = 0.
    def cheap(t, y, args):
        return jnp.stack([y[1], -jnp.sin(y[0])])

    def fine(t, y, args):
        return cheap(t, y, args) + jnp.stack([0.0 * t, -0.5 * jnp.cos(t) * y[0] ** 2])

    @jax.jit
    def end(p, keys):
        def one(key):
            solver = mlem(jnp.stack([jnp.array(1.0), p]), key, POLICIES[name], shared=False)
            settings = dict(t1=3.0, steps=2025, saveat=T1)
            return solve(ml.MultilevelTerm(cheap, fine), solver, jnp.array([1.0, 0.5]), **settings).ys[0]

        return jax.vmap(one)(keys)

    keys = jr.split(jr.key(6), 1 if name == "midpoint" else 200)
    windows = np.array([15, 45, 135])
    exact = end(jnp.array(1.0), keys[:1])
    errors = [jnp.sqrt(jnp.mean((end(jnp.array(1 / w), keys) - exact) ** 2)) for w in windows]
    # 200 seeds give each error to about 5%, the slope over a factor of 9 to 0.05.
    assert abs(slope(windows, errors) - ORDERS[name]) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stratified", "systematic", "midpoint"])
def test_a_correction_that_acts_on_itself_leaves_a_first_order_error(name, x64):
    # Linear levels -a y and (d - a) y commute, so it does not matter where in a window of m steps the one
    # firing lies: its factor is (1 - a h)^{m-1} (1 - a h + m h d), to second order the p = 1 window's times
    # 1 - (H^2 - h H) d^2 / 2. Over the time T that is an error H D' D / 2 per unit of time, not H^2.
    a, d, n, m = 1.0, 0.6, 96, 8
    levels = [lambda t, y, args: -a * y, lambda t, y, args: (d - a) * y]
    solver = mlem([1.0, 1 / m], jr.key(8), POLICIES[name])
    end = solve(ml.MultilevelTerm(*levels), solver, jnp.array(1.0), t1=1.0, steps=n, saveat=T1).ys[0]
    h = 1 / n
    closed = ((1 - a * h) ** (m - 1) * (1 - a * h + m * h * d)) ** (n // m)
    np.testing.assert_allclose(end, closed, rtol=1e-12)
    euler = (1 + (d - a) * h) ** n
    np.testing.assert_allclose(end / euler - 1, -(m - 1) * h * d**2 / 2, rtol=0.1)


# --- strong orders on closed forms ---


def ornstein_uhlenbeck(t, w):
    """dx = (b / sqrt(1 + t) - x / (2 (1 + t))) dt + a b / sqrt(1 + t) dW (Kloeden & Platen)."""
    return (1 + 0.8 * (t + 0.7 * w)) / np.sqrt(1 + t)


def geometric(t, w):
    """dx = x dt / 2 + 0.8 x dW."""
    return np.exp((0.5 - 0.8**2 / 2) * t + 0.8 * w)


PROBLEMS = {
    "additive": (
        [
            lambda t, y, args: 0.8 / jnp.sqrt(1 + t) + 0 * y,
            lambda t, y, args: 0.8 / jnp.sqrt(1 + t) - y / (2 * (1 + t)),
        ],
        lambda t, y, args: 0.8 * 0.7 / jnp.sqrt(1 + t),
        ornstein_uhlenbeck,
    ),
    "multiplicative": (
        [lambda t, y, args: 0.3 * y, lambda t, y, args: 0.5 * y],
        lambda t, y, args: 0.8 * y,
        geometric,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "problem, name, order",
    [
        ("additive", "midpoint", 1.0),
        ("additive", "stratified", 1.0),
        ("additive", "independent", 0.5),
        ("multiplicative", "midpoint", 0.5),
        ("multiplicative", "independent", 0.5),
    ],
)
def test_strong_order_path_by_path(problem, name, order):
    # RMS over 2000 paths (seed 7) at T = 1 with p = (1, 1/4); 16 to 256 steps through one grid of 256
    # cells, so that the closed form at the path's own end is the reference of all of them.
    levels, diffusion, closed_form = PROBLEMS[problem]
    grid = jnp.linspace(0, 1, 257)

    @jax.jit
    def end(h, keys):
        def one(key):
            noise = ml.GridBrownianPath(grid, (), key=jr.fold_in(key, 0))
            terms = diffrax.MultiTerm(ml.MultilevelTerm(*levels), diffrax.ControlTerm(diffusion, noise))
            solver = mlem([1.0, 0.25], jr.fold_in(key, 1), POLICIES[name], shared=False)
            settings = dict(saveat=T1, dt0=h, max_steps=None)
            return solve(terms, solver, jnp.array(1.0), **settings).ys[0], noise.evaluate(0.0, 1.0)

        return jax.vmap(one)(keys)

    steps = np.array([16, 32, 64, 128, 256])
    errors = []
    for n in steps:
        x, w = end(1 / n, jr.split(jr.key(7), 2000))
        errors.append(np.sqrt(np.mean((x - closed_form(1.0, np.asarray(w))) ** 2)))
    # 2000 paths give each error to about 2%, more for the heavier tails of the multiplicative problem.
    assert abs(slope(1 / steps, errors) - order) < 0.12
