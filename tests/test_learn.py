"""Learned probabilities: the gradient against closed forms, its variance against the score function's, its memory,
and what is learned against the optimum."""

import dataclasses

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import as_user, assert_mean

import mlem_jax as ml
from mlem_jax._weight_gradient import gradient_of_error, Problem

# Linear levels f^k = M_k x, with increments that shrink and whose weight moves in time, and additive noise.
STEPS, KNOTS = 16, 3
COSTS = np.array([1.0, 4.0, 16.0])
FINEST = np.array([[-1.0, 0.5], [-0.5, -0.7]])
CHANGE = np.array([[0.9, 3.0], [-2.4, 1.2]])
NOISE = 0.3
LEARNED = (False, True, True)


def matrices(t):
    shrink = jnp.stack([1.0 * jnp.ones_like(t), 0.3 * (1 - 0.8 * t), jnp.zeros_like(t)])
    return jnp.asarray(FINEST)[None] + jnp.tensordot(shrink, jnp.asarray(CHANGE), 0)


def linear_term():
    levels = [lambda t, y, args, k=k: matrices(jnp.asarray(t))[k].astype(y.dtype) @ y for k in range(3)]
    return ml.MultilevelTerm(*levels, costs=COSTS)


def grid(steps=STEPS):
    return jnp.linspace(0.0, 1.0, steps + 1)


class NoisyTerms(eqx.Module):
    """Terms with noise of their own for each trajectory."""

    ts: jax.Array

    def __call__(self, key):
        path = ml.GridBrownianPath(self.ts, (), key=key)
        noise = diffrax.ControlTerm(lambda t, y, args: jnp.full_like(y, NOISE), path)
        return diffrax.MultiTerm(linear_term(), noise)


def linear_problem(steps=STEPS, **settings):
    settings = dict(learned=LEARNED, directions=2 * KNOTS, unbiased=False) | settings
    knots, costs = jnp.linspace(0, 1, KNOTS), jnp.asarray(COSTS / 16)
    return Problem(NoisyTerms(grid(steps)), grid(steps), knots, None, costs, **settings)


def exact_error(p, y0):
    """E |x_T - x_T^ref|^2 / 2 for probabilities `(N, 3)`: the recursion of theory.md section 4.2 for the second
    moments of x and of x - x^ref, whose cross terms vanish since the weights' deviations have mean zero."""
    h = 1 / p.shape[0]

    def step(moments, now):
        t, p = now
        m = matrices(t)
        a = jnp.eye(2) + h * m[2]
        d = jnp.concatenate([m[:1], m[1:] - m[:-1]])
        x, e = moments
        kicks = h**2 * jnp.einsum("k,kij,jl,kml->im", (1 - p) / p, d, x, d)
        return (a @ x @ a.T + kicks + h * NOISE**2, a @ e @ a.T + kicks), None

    start = jnp.outer(y0, y0), jnp.zeros((2, 2))
    (_, e), _ = jax.lax.scan(step, start, (jnp.linspace(0, 1, p.shape[0] + 1)[:-1], p))
    return jnp.trace(e) / 2


def table(problem, logits):
    return jax.vmap(problem.probabilities(logits))(problem.ts[:-1], jnp.diff(problem.ts))


Y0 = jnp.array([1.0, 0.5])
LOGITS = jnp.array([[0.0, 0.0, 0.0], [-0.5, 0.0, 0.5], [-1.5, -2.0, -1.0]])
ROWS = np.array(LEARNED)


def samples(problem, logits, y0, number, key):
    """Independent estimates (a batch would share its coins)."""

    @jax.jit
    def draw(keys):
        return jax.vmap(lambda k: gradient_of_error(problem, logits, y0[None], k))(keys)

    errors, gradients = draw(jr.split(key, number))
    return np.asarray(errors[:, 0]), np.asarray(gradients[:, 0])


def score_function_samples(problem, logits, y0, number, key):
    """The textbook estimator on the same problem: G (B - p) dlogit, plus G's derivative through w = B / p."""
    p, m = table(problem, logits), jax.vmap(matrices)(problem.ts[:-1])
    d = jnp.concatenate([m[:, :1], m[:, 1:] - m[:, :-1]], axis=1)
    hats = jax.vmap(problem.probabilities(logits).hats)(problem.ts[:-1])

    def one(key):
        kicks = NOISE / STEPS**0.5 * jr.normal(jr.fold_in(key, 0), (STEPS, 1))
        coins = (jr.uniform(jr.fold_in(key, 1), p.shape) < p).astype(p.dtype)

        def square(weights):
            def step(x, now):
                w, d, kick = now
                return x + jnp.einsum("k,kij,j->i", w, d, x) / STEPS + kick, None

            x, _ = jax.lax.scan(step, y0, (weights, d, kicks))
            ref, _ = jax.lax.scan(step, y0, (jnp.ones_like(weights), d, kicks))
            return jnp.sum((x - ref) ** 2) / 2

        value, slopes = jax.value_and_grad(square)(coins / p)
        return jnp.where(ROWS[:, None], ((value * (coins - p) - slopes * coins * (1 - p) / p).T @ hats), 0.0)

    return np.asarray(jax.jit(jax.vmap(one))(jr.split(key, number)))


@pytest.fixture(scope="module")
def ours():
    """2 * 10^4 independent estimates, seed 0."""
    return samples(linear_problem(), LOGITS, Y0, 20_000, jr.key(0))


def closed_gradient():
    problem = linear_problem()
    return jax.value_and_grad(lambda logits: exact_error(table(problem, logits), Y0))(LOGITS)


def test_gradient_has_the_mean_of_the_closed_form(ours):
    # 5 standard errors, all of which are below 2.5 per cent of their entry: a wrong factor would be seen.
    errors, gradients = ours
    value, expected = closed_gradient()
    assert np.all(gradients[:, ~ROWS] == 0)
    standard_errors = gradients[:, ROWS].std(0) / np.sqrt(len(gradients))
    assert np.all(standard_errors < 0.025 * np.abs(np.asarray(expected)[ROWS]))
    assert_mean(gradients[:, ROWS], np.asarray(expected)[ROWS])
    assert_mean(errors, float(value))


def test_variance_at_equal_cost_is_far_below_the_score_functions(ours):
    # 2 * 10^4 estimates of either kind, seeds 0 and 1.
    plain = score_function_samples(linear_problem(), LOGITS, Y0, 20_000, jr.key(1))
    assert_mean(plain[:, ROWS], np.asarray(closed_gradient()[1])[ROWS])
    # Evaluations of the finest level per estimate, a derivative (forward or backward) counted as two more. Ours: the
    # reference, all levels in every step, and 6 derivatives of the solve. Theirs: the reference and one derivative.
    problem = linear_problem()
    solve = float(problem.cost(LOGITS))
    our_cost = STEPS * (1 + COSTS.sum() / 16) + solve * (1 + 2 * problem.directions)
    their_cost = STEPS + solve * (1 + 2)
    variances = [g[:, ROWS].var(0).sum() for g in (ours[1], plain)]
    ratio = variances[1] * their_cost / (variances[0] * our_cost)
    print(f"variance {variances[1] / variances[0]:.0f} times lower, {ratio:.0f} times at equal cost")
    assert ratio > 5
