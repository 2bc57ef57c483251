"""The identities of the method: Euler-Maruyama for p = 1, moments on linear levels, predicted errors where
they are exact."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import assert_mean, mlem, POLICIES, solve

import mlem_jax as ml

T1 = diffrax.SaveAt(t1=True)


# --- p = 1 is Euler-Maruyama on the finest level ---


def pendulum(t, y, args):
    return jnp.stack([y[1], -jnp.sin(y[0]) - args * y[1] + jnp.cos(t)])


@functools.cache
def steps_of(solver_name, noisy, precision):
    """All 40 steps of a driven pendulum with three levels, with p = 1 or by Euler-Maruyama."""
    with jax.enable_x64(precision == 64):
        terms = ml.MultilevelTerm(lambda t, y, args: y, lambda t, y, args: -y, pendulum)
        if noisy:
            noise = ml.GridBrownianPath(jnp.linspace(0, 2, 41), (3,), key=jr.key(0))
            diffusion = lambda t, y, args: 0.3 * jnp.outer(y, jnp.arange(1.0, 4.0))  # noqa: E731
            terms = diffrax.MultiTerm(terms, diffrax.ControlTerm(diffusion, noise))
        euler = solver_name == "euler"
        solver = diffrax.Euler() if euler else mlem(jnp.ones(3), jr.key(1), POLICIES[solver_name])
        settings = dict(t1=2.0, steps=40, args=0.1, saveat=diffrax.SaveAt(steps=True), max_steps=40)
        return solve(terms, solver, jnp.array([0.3, 1.0]), **settings)


@pytest.mark.parametrize("precision", [32, 64])
@pytest.mark.parametrize("noisy", [False, True], ids=["ODE", "SDE"])
@pytest.mark.parametrize("name", POLICIES)
def test_probability_one_is_euler_step_by_step(name, noisy, precision):
    ours, euler = steps_of(name, noisy, precision), steps_of("euler", noisy, precision)
    assert ours.ys.dtype == f"float{precision}" and ours.ys.shape == (40, 2)
    np.testing.assert_array_equal(ours.ts, euler.ts)
    # XLA may contract the two sums differently: some units in the last place.
    np.testing.assert_allclose(ours.ys, euler.ys, rtol=40 * float(jnp.finfo(ours.ys.dtype).eps))


def test_narrow_probabilities_do_not_round_the_step(x64):
    term = ml.MultilevelTerm(lambda t, y, args: y, lambda t, y, args: -y)
    y0 = jnp.array([1.0, 2.0])
    ours = solve(term, mlem(jnp.ones(2, jnp.float32), jr.key(0)), y0, steps=10)
    euler = solve(term, diffrax.Euler(), y0, steps=10, saveat=T1)
    np.testing.assert_allclose(ours.ys, euler.ys, rtol=1e-14)


# --- linear levels: mean and second moment ---

PROBABILITIES = np.array([0.9, 0.5, 0.25])
MATRICES = np.array([[[-0.5, 0.6], [-0.8, 0.1]], [[-0.9, 1.2], [-1.0, -0.3]], [[-1.0, 1.0], [-1.4, -0.2]]])
DIFFUSION = np.array([[0.3, 0.0], [0.2, 0.1]])


def moments(h, steps, x0, weight_covariance):
    """The mean, and the second moment
    S <- (I + h M_K) S (I + h M_K)^T + h^2 sum_jk Cov(w_j, w_k) D_j S D_k^T + h G G^T, D_k = M_k - M_{k-1}.
    """
    increments = np.diff(MATRICES, axis=0, prepend=0)
    propagate = np.eye(2) + h * MATRICES[-1]
    mean, second = x0, np.outer(x0, x0)
    for _ in range(steps):
        coins = np.einsum("jk,jab,bc,kdc->ad", weight_covariance, increments, second, increments)
        second = propagate @ second @ propagate.T + h**2 * coins + h * DIFFUSION @ DIFFUSION.T
        mean = propagate @ mean
    return mean, second


COVARIANCES = {
    # Var w = (1 - p) / p; one uniform for all levels gives E w_j w_k = min(p_j, p_k) / (p_j p_k).
    "independent": np.diag(1 / PROBABILITIES - 1),
    "nested": 1 / np.maximum.outer(PROBABILITIES, PROBABILITIES) - 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COVARIANCES)
def test_moments_of_linear_levels_are_the_recursions(name):
    # Seed 2, 40000 trajectories with coins and noise of their own, 12 steps; 5 standard errors.
    h, steps, x0 = 0.125, 12, np.array([1.0, -0.5])

    def level(matrix):
        return lambda t, y, args: jnp.asarray(matrix, jnp.float32) @ y

    drift = ml.MultilevelTerm(*[level(matrix) for matrix in MATRICES])

    @jax.jit
    @jax.vmap
    def end(key):
        noise = diffrax.UnsafeBrownianPath((2,), jr.fold_in(key, 0))
        diffusion = diffrax.ControlTerm(lambda t, y, args: jnp.asarray(DIFFUSION, jnp.float32), noise)
        terms = diffrax.MultiTerm(drift, diffusion)
        solver = mlem(PROBABILITIES, jr.fold_in(key, 1), POLICIES[name], shared=False)
        settings = dict(t1=h * steps, steps=steps, saveat=T1, adjoint=diffrax.ForwardMode())
        return solve(terms, solver, jnp.asarray(x0, jnp.float32), **settings).ys[0]

    x = np.asarray(end(jr.split(jr.key(2), 40_000)), np.float64)
    mean, second = moments(h, steps, x0, COVARIANCES[name])
    products = x[:, :, None] * x[:, None, :]
    assert_mean(x, mean)
    assert_mean(products, second)
    # The test can tell: without the coins, or with the other policy's covariance, it would fail.
    for wrong in (np.zeros((3, 3)), *[c for n, c in COVARIANCES.items() if n != name]):
        with pytest.raises(AssertionError, match="standard errors"):
            assert_mean(products, moments(h, steps, x0, wrong)[1])


# --- drifts that do not depend on the state: the predicted error is exact ---


def increments(t):
    """D_1, D_2, D_3 at the time t, (3,); works with numpy and jax."""
    numpy = jnp if isinstance(t, jax.Array) else np
    return numpy.stack([1 + t, numpy.cos(5 * t), 0.4 * numpy.exp(-t)], axis=-1)


FORCING = ml.MultilevelTerm(
    *[lambda t, y, args, k=k: jnp.sum(increments(t)[: k + 1]).astype(y.dtype) for k in range(3)]
)
UNEQUAL = np.concatenate([[0], np.cumsum(1 + 0.9 * np.sin(np.arange(40)))])
UNEQUAL = 2 * UNEQUAL / UNEQUAL[-1]


@functools.partial(jax.jit, static_argnames="name")
def forced(name, p, ts, keys):
    """The end of y' = f(t) from 0, one trajectory per key, for p of shape (K,)."""

    def end(key):
        solver = mlem(p, key, POLICIES[name], shared=False)
        settings = dict(t1=ts[-1], stepsize_controller=diffrax.StepTo(ts), saveat=T1)
        return solve(FORCING, solver, jnp.array(0.0), **settings).ys[0]

    return jax.vmap(end)(keys)


def euler_sum(ts):
    return np.sum(np.diff(ts) * increments(ts[:-1]).sum(-1))


@pytest.mark.slow
@pytest.mark.parametrize("name", COVARIANCES)
def test_predicted_error_is_measured_on_unequal_steps(name):
    # sum_n h_n^2 sum_jk Cov(w_j, w_k) D_j D_k (t_n), J = 1. Seed 3, 40000 trajectories, 5 standard errors.
    error = np.asarray(forced(name, PROBABILITIES, jnp.asarray(UNEQUAL), jr.split(jr.key(3), 40_000)))
    error = error - euler_sum(UNEQUAL)
    h, d = np.diff(UNEQUAL), increments(UNEQUAL[:-1])
    predicted = np.einsum("n,jk,nj,nk->", h**2, COVARIANCES[name], d, d)
    assert_mean(error, 0)
    assert_mean(error**2, predicted)


WINDOWS = np.array([1, 4, 16])  # p = 1, 1/4, 1/16: whole windows, exactly in binary


def window_errors(ts):
    """For each level, the error of a window whose only firing is in its j-th step, (windows, j)."""
    h, d = np.diff(ts), increments(ts[:-1])
    for k, window in enumerate(WINDOWS):
        share = (h * d[:, k]).reshape(-1, window)
        yield window * share - share.sum(1, keepdims=True)


@pytest.mark.slow
def test_stratified_error_is_the_variation_inside_the_windows():
    # One uniform place per window: variances of the windows add up. Seed 4, 40000 trajectories, 5 s.e.
    ts = np.linspace(0, 2, 65)
    error = forced("stratified", 1 / WINDOWS, jnp.asarray(ts), jr.split(jr.key(4), 40_000))
    error = np.asarray(error, np.float64) - euler_sum(ts)
    assert_mean(error, 0)
    assert_mean(error**2, sum((e**2).mean(1).sum() for e in window_errors(ts)))


def test_systematic_error_is_that_of_one_phase_for_all_windows():
    # Seed 5, 40000 trajectories, 5 standard errors.
    ts = np.linspace(0, 2, 65)
    error = forced("systematic", 1 / WINDOWS, jnp.asarray(ts), jr.split(jr.key(5), 40_000))
    error = np.asarray(error, np.float64) - euler_sum(ts)
    assert_mean(error, 0)
    assert_mean(error**2, sum((e.sum(0) ** 2).mean() for e in window_errors(ts)))


def test_midpoint_sum_is_exact():
    for ts in (np.linspace(0, 2, 65), np.linspace(0, 1, 65) ** 2):
        end = forced("midpoint", 1 / WINDOWS, jnp.asarray(ts), jr.split(jr.key(0), 1))[0]
        expected = euler_sum(ts) + sum(e[:, e.shape[1] // 2].sum() for e in window_errors(ts))
        np.testing.assert_allclose(end, expected, rtol=1e-5)
