"""Learned probabilities: the gradient against closed forms, its variance against the score function's, its memory,
and what is learned against the optimum."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from learn_problems import (
    bent,
    COSTS,
    grid,
    KNOTS,
    learn,
    LEARNED,
    matrices,
    more_bent,
    NOISE,
    NoisyTerms,
    STEPS,
    Y0,
)
from problems import assert_mean, CountedLevels

import mlem_jax as ml
from mlem_jax._learning.problem import Problem
from mlem_jax._learning.weight_gradient import gradient_of_error


def linear_problem(steps=STEPS, **settings):
    settings = dict(learned=LEARNED, perturbations=2, unbiased=False) | settings
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


LOGITS = jnp.array([[0.0, 0.0, 0.0], [-0.5, 0.0, 0.5], [-1.5, -2.0, -1.0]])
ROWS = np.array(LEARNED)


def samples(problem, logits, y0, number, key, *, batch=1):
    """Estimates in batches `(number, batch, ...)`; those of one batch share their coins."""
    y0s = jnp.stack([y0] * batch)
    draw = jax.jit(jax.vmap(lambda k: gradient_of_error(problem, logits, y0s, k)))
    return [np.asarray(x) for x in draw(jr.split(key, number))]


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
    """10^4 independent batches of two estimates, seed 0."""
    return samples(linear_problem(), LOGITS, Y0, 10_000, jr.key(0), batch=2)


def closed_gradient():
    problem = linear_problem()
    return jax.value_and_grad(lambda logits: exact_error(table(problem, logits), Y0))(LOGITS)


@pytest.mark.slow
def test_gradient_has_the_mean_of_the_closed_form(ours):
    # At either place in the batch. 5 standard errors, all of which are below 2 per cent of their entry: a wrong factor
    # would be seen.
    errors, gradients = ours
    value, expected = closed_gradient()
    assert np.all(gradients[:, :, ~ROWS] == 0)
    gradients, expected = gradients[:, :, ROWS], np.asarray(expected)[ROWS]
    assert np.all(gradients.std(0) / np.sqrt(len(gradients)) < 0.02 * np.abs(expected))
    assert_mean(gradients, expected)
    assert_mean(errors, float(value))


@pytest.mark.slow
def test_variance_at_equal_cost_is_far_below_the_score_functions(ours):
    # 10^4 of our estimates, 2 * 10^4 of the plain ones, seeds 0 and 1.
    plain = score_function_samples(linear_problem(), LOGITS, Y0, 20_000, jr.key(1))
    assert_mean(plain[:, ROWS], np.asarray(closed_gradient()[1])[ROWS])
    # Evaluations of the finest level per estimate, a forward derivative counted as one more and a backward one as
    # two. Theirs: reference, solve, one derivative. Ours: reference, solve, 4 derivatives, and all levels in every
    # step, as if some trajectory of a large batch had a kick there.
    problem = linear_problem()
    solve = float(problem.cost(LOGITS))
    our_cost = STEPS * (1 + COSTS.sum() / 16) + solve * (1 + 2 * problem.perturbations)
    their_cost = STEPS + solve * (1 + 2)
    ours_variance, their_variance = (g[:, ROWS].var(0).sum() for g in (ours[1][:, 0], plain))
    ratio = their_variance / ours_variance
    print(f"variance {ratio:.0f} times lower, {ratio * their_cost / our_cost:.0f} times at equal cost")
    assert ratio * their_cost / our_cost > 5


@pytest.mark.slow
def test_unbiased_gradient_is_exact_for_a_drift_that_is_not_affine(x64):
    # Three steps, backwards in time, have 8 outcomes of the one level's coins: the expectation by summing over them,
    # its derivative by jax.grad. 2 * 10^4 estimates, seed 2, 5 standard errors. The parabola's is off by far more.
    ts = jnp.linspace(1.0, 0.0, 4)
    h = ts[1] - ts[0]
    make_terms = eqx.Partial(lambda key: ml.MultilevelTerm(bent, more_bent))
    knots, logits = jnp.array([0.0, 1.0]), jnp.array([[0.0, 0.0], [-0.5, 0.3]])
    problem = Problem(
        make_terms, ts, knots, None, jnp.ones(2), learned=(False, True), perturbations=1, unbiased=True
    )
    outcomes = jnp.asarray(np.indices((2, 2, 2)).reshape(3, 8).T, float)

    def end(weights):
        y = jnp.array(0.7)
        for n in range(3):
            cheap, fine = bent(ts[n], y, None), more_bent(ts[n], y, None)
            y = y + h * (cheap + weights[n] * (fine - cheap))
        return y

    def mean(function, logits):
        p = jax.vmap(problem.probabilities(logits))(ts[:-1], ts[:-1])[:, 1]
        chances = jax.vmap(lambda b: jnp.prod(jnp.where(b > 0, p, 1 - p)))(outcomes)
        return jnp.tensordot(chances, jax.vmap(lambda b: function(b / p))(outcomes), 1), p

    def expectation(logits):
        return mean(lambda w: (end(w) - end(jnp.ones(3))) ** 2, logits)[0]

    value, expected = jax.value_and_grad(expectation)(logits)
    errors, gradients = samples(problem, logits, jnp.array(0.7), 20_000, jr.key(2))
    assert_mean(errors[:, 0], float(value))
    assert_mean(gradients[:, 0, 1], np.asarray(expected)[1])
    squares, p = mean(lambda w: jax.grad(end)(w) ** 2, logits)
    hats = jax.vmap(problem.probabilities(logits).hats)(ts[:-1])
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(gradients[:, 0, 1], -np.asarray((squares * (1 - p) / p) @ hats))


@pytest.fixture(scope="module")
def compiled():
    """The gradient with 32 and with 256 steps, for 4 trajectories of 500 components with 4 kicks each, p = 0.05, and
    the executions of the levels in a run of the latter."""
    counted = CountedLevels(2)

    def compiled(steps):
        ts = jnp.linspace(0.0, 1.0, steps + 1)
        make_terms = eqx.Partial(lambda key: counted.term)
        problem = Problem(make_terms, ts, jnp.linspace(0, 1, 3), None, jnp.ones(2), (False, True), 4, False)
        inputs = problem, jnp.full((2, 3), -3.0), jnp.ones((4, 500)), jr.key(0)
        return eqx.filter_jit(gradient_of_error).lower(*inputs).compile(), inputs

    small, (large, inputs) = compiled(32)[0], compiled(256)
    jax.block_until_ready(large(*inputs))
    return small, large, counted.take()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps(compiled):
    # One stored path would be 8 kB a step, the tangents' 32 kB. Allowed: 100 bytes a step, for tables of times,
    # probabilities and hat functions.
    small, large = (c.compiled.memory_analysis().temp_size_in_bytes for c in compiled[:2])
    print(f"temporary memory {small} bytes for 32 steps, {large} for 256")
    assert large - small < 100 * (256 - 32)
    assert large < 1.5 * small


def test_levels_run_for_the_reference_their_coins_and_kicks_only(compiled):
    # The finest level: 256 steps of the reference, 12.2 firings expected (standard deviation 3.4), at most 16 kicks.
    # Kicks run the first level once more, which is always on. One execution serves the whole batch.
    first, finest = compiled[2]
    assert 256 < first <= 256 + 16
    assert 256 + 16 / 2 < finest <= 256 + 16 + 12 + 5 * 3.4


# --- what is learned ---


def optimum(mu, free):
    """Error and cost of the best probabilities, free in every step: Adam on the closed form, with the second level
    `free` or (the first one then rests) always on."""
    costs, optimizer = jnp.asarray(COSTS / 16), optax.adam(optax.cosine_decay_schedule(0.1, 1000))

    def parts(logits):
        p = jnp.where(jnp.array([False, free, True])[None], jax.nn.sigmoid(logits), 1.0)
        table = ml.TabulatedProbabilities(grid()[:-1], p)
        return jnp.stack([exact_error(p, Y0), ml.expected_evaluations(table, grid()) @ costs])

    def step(carry, _):
        gradient = jax.grad(lambda x: parts(x) @ jnp.array([1.0, mu]))(carry[0])
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, carry[1])
        return (carry[0] + updates, state), None

    start = jnp.zeros((STEPS, 3))
    descend = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=1000)[0])
    return [float(x) for x in parts(descend((start, optimizer.init(start)))[0])]


@pytest.mark.slow
@pytest.mark.parametrize("mode, mu", [("mu", 1e-2), ("budget", 1e-3)])
def test_learned_product_of_error_and_cost_is_nearly_optimal(mode, mu):
    # Seed 4, 200 iterations of 16 trajectories. At the larger mu both levels' best free probabilities lie below 1. At
    # the smaller one the second level's is 1, which has to be found; the best at that mu is the best at its cost.
    best_error, best_cost = optimum(mu, free=mode == "mu")
    learned, history = learn(**({"mu": mu} if mode == "mu" else {"budget": best_cost}))
    p = jax.vmap(learned)(grid()[:-1], jnp.diff(grid()))
    error = float(exact_error(p, Y0))
    cost = float(ml.expected_evaluations(learned, grid()) @ jnp.asarray(COSTS / 16))
    product = error * cost / (best_error * best_cost)
    print(f"{mode}: product {product:.3f} of the optimum's, cost {cost:.2f} of {best_cost:.2f}")
    assert product < 1.1
    assert error + mu * cost < 1.05 * (best_error + mu * best_cost)
    assert np.all(learned.values[:, 0] == 1)
    assert history.objective.shape == (200,)
    if mode == "budget":
        assert np.all(learned.values[:, 1] == 1)
        np.testing.assert_allclose(cost, best_cost, rtol=1e-2)
        np.testing.assert_allclose(history.cost, best_cost, rtol=1e-2)
    else:
        np.testing.assert_allclose(history.objective, history.error + mu * history.cost, rtol=1e-5)
        np.testing.assert_allclose(history.cost[-1], cost, rtol=1e-2)
