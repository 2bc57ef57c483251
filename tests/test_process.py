"""The noising process, the prediction adapter and the two sampling drifts, on data for which the exact score
is known: `N(mu, c**2)` in every pixel, so that `eps_hat = s (y - mu) / (c**2 + s**2)`."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import assert_mean, slope

import mlem_jax as ml
from mlem_jax.diffusion import (
    NoisePredictor,
    ProbabilityFlow,
    reverse_diffusion,
    ReverseDrift,
    VariancePreserving,
)
from mlem_jax.diffusion._predictor.adapter import Prediction, training_target

MU, C = 0.3, 0.5
PROCESSES = [VariancePreserving(), VariancePreserving(s_min=0.1, s_max=5.0)]
SPACINGS = {"karras": lambda s: s ** (1 / 7), "log": np.log, "cosine": np.arctan}
every_process = pytest.mark.parametrize("process", PROCESSES, ids=["default", "narrow"])


class GaussianNetwork(eqx.Module):
    """The exact answer for data `N(mu, c**2)`, in any of the three predictions."""

    prediction: Prediction = eqx.field(static=True)
    mu: float = MU
    c: float = C

    def __call__(self, x, noise_level):
        s = jnp.exp(noise_level)
        alpha, sigma = 1 / jnp.sqrt(1 + s**2), s / jnp.sqrt(1 + s**2)
        eps = exact_noise(x / alpha, s, self.mu, self.c)
        x0 = x / alpha - s * eps
        return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[self.prediction]


def exact_noise(y, s, mu=MU, c=C):
    return s * (y - mu) / (c**2 + s**2)


def predictor(prediction="v", process=PROCESSES[1], **gaussian):
    return NoisePredictor(GaussianNetwork(prediction, **gaussian), process, prediction)


def sample(terms, solver, ts, y0):
    """The end of a run through the grid `ts`."""
    solution = diffrax.diffeqsolve(
        terms, solver, ts[0], ts[-1], None, y0, stepsize_controller=diffrax.StepTo(ts=ts), max_steps=4096
    )
    return solution.ys[-1]


# The process


@every_process
def test_variance_is_preserved_and_s_is_the_noise_to_signal_ratio(process):
    s = jnp.geomspace(process.s_min, process.s_max, 200)
    alpha, sigma = process.alpha(s), process.sigma(s)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
    np.testing.assert_allclose(sigma / alpha, s, rtol=1e-6)
    assert np.all(alpha > 0)


@every_process
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_grid_decreases_uniformly_in_its_map_between_exact_ends(process, spacing, steps):
    grid = np.asarray(process.grid(steps, spacing=spacing))
    assert grid.shape == (steps + 1,)
    assert grid[0] == np.float32(process.s_max) and grid[-1] == np.float32(process.s_min)
    assert np.all(np.diff(grid) < 0)
    mapped = SPACINGS[spacing](grid.astype(np.float64))
    expected = np.linspace(mapped[0], mapped[-1], steps + 1)
    np.testing.assert_allclose(mapped, expected, atol=2e-6 * np.max(np.abs(mapped)))


@every_process
def test_drawn_noise_levels_are_uniform_in_the_cosine_time(process):
    # Kolmogorov-Smirnov at level 1e-4 (critical value 2.23 / sqrt(n)), seed 0.
    n = 20_000
    s = np.asarray(process.draw_s(jr.key(0), (n,)), np.float64)
    assert s.shape == (n,)
    # tan(arctan(s_max)) itself is off by rounding.
    assert process.s_min * (1 - 1e-4) <= s.min() and s.max() <= process.s_max * (1 + 1e-4)
    low, high = np.arctan(process.s_min), np.arctan(process.s_max)
    cdf = (np.sort(np.arctan(s)) - low) / (high - low)
    distance = np.max(np.abs(cdf - (np.arange(n) + 0.5) / n))
    assert distance * np.sqrt(n) < 2.23


@pytest.mark.parametrize(
    "ends", [(0.0, 80.0), (2.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (0.1, np.inf), (np.nan, 1.0)]
)
def test_bad_range_names_both_ends(ends):
    s_min, s_max = (float(x) for x in ends)
    with pytest.raises(ValueError, match=f"0 < s_min < s_max.*s_min={s_min}, s_max={s_max}"):
        VariancePreserving(s_min, s_max)


def test_bad_grid_and_prediction_say_what_to_write():
    process = VariancePreserving()
    with pytest.raises(ValueError, match="at least one step, and was asked for 0"):
        process.grid(0)
    with pytest.raises(
        ValueError, match=r"spacing='linear'.*write one of \['cosine', 'karras', 'log', 'time'\]"
    ):
        process.grid(4, spacing="linear")
    with pytest.raises(
        ValueError, match=r"prediction='noise'.*write one of \('eps', 'x0', 'v', 'score', 'velocity'\)"
    ):
        NoisePredictor(GaussianNetwork("eps"), process, "noise")


# The adapter


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_predictions_of_one_score_give_the_same_noise(prediction, x64):
    # Ends of the default range: at s = 0.01 the x0 adapter divides by sigma, at s = 80 alpha is 1/80.
    process = VariancePreserving()
    adapter = predictor(prediction, process)
    y = jr.normal(jr.key(0), (3, 2, 2, 1))
    for s in jnp.geomspace(process.s_min, process.s_max, 9):
        np.testing.assert_allclose(adapter(process.alpha(s) * y, s), exact_noise(y, s), atol=1e-12)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "velocity"])
def test_adapter_inverts_the_training_target(prediction, x64):
    # A network that answers with the training target makes the adapter return the noise itself.
    process = VariancePreserving()
    x0, eps = jr.normal(jr.key(0), (2, 3, 2, 2, 1))
    for s in jnp.geomspace(process.s_min, process.s_max, 9):
        alpha, sigma = process.alpha(s), process.sigma(s)
        target = training_target(prediction, process, x0, eps, jnp.full((3, 1, 1, 1), s))
        adapter = NoisePredictor(lambda x, noise_level, target=target: target, process, prediction)
        np.testing.assert_allclose(adapter(alpha * x0 + sigma * eps, s), eps, atol=1e-12)


def test_network_is_asked_at_the_logarithm_of_s():
    adapter = NoisePredictor(
        lambda x, noise_level: jnp.full_like(x, noise_level), VariancePreserving(), "eps"
    )
    np.testing.assert_allclose(adapter(jnp.zeros((2, 2, 1)), jnp.asarray(3.0)), np.log(3.0), rtol=1e-6)


# Sampling


@pytest.mark.slow
def test_euler_on_the_probability_flow_converges_to_the_closed_form_at_first_order(x64):
    process = PROCESSES[1]
    y0 = process.s_max * jr.normal(jr.key(0), (3, 2, 2, 1))
    shrink = np.sqrt((C**2 + process.s_min**2) / (C**2 + process.s_max**2))
    exact = MU + (y0 - MU) * shrink
    term = diffrax.ODETerm(ProbabilityFlow(predictor()))
    steps = [64, 128, 256, 512]
    errors = [jnp.max(jnp.abs(sample(term, diffrax.Euler(), process.grid(n), y0) - exact)) for n in steps]
    assert -1.1 < slope(steps, errors) < -0.95
    assert errors[-1] < 2e-3


def test_euler_on_the_probability_flow_is_ddim():
    process, steps = VariancePreserving(), 20

    def network(x, noise_level):
        return jnp.tanh(2 * x + noise_level)

    ts = process.grid(steps)
    x = jr.normal(jr.key(0), (3, 2, 2, 1))
    drift = ProbabilityFlow(NoisePredictor(network, process, "x0"))
    y = sample(diffrax.ODETerm(drift), diffrax.Euler(), ts, x / process.alpha(ts[0]))

    # Song, Meng & Ermon 2021, equation (12) with sigma_t = 0; their alpha_t is the square of ours.
    alpha = 1 / (1 + np.asarray(ts, np.float64) ** 2)
    x_ddim = np.asarray(x, np.float64)
    for n in range(steps):
        answer = np.tanh(2 * x_ddim + np.log(float(ts[n])))
        eps = (x_ddim - np.sqrt(alpha[n]) * answer) / np.sqrt(1 - alpha[n])
        predicted_x0 = (x_ddim - np.sqrt(1 - alpha[n]) * eps) / np.sqrt(alpha[n])
        x_ddim = np.sqrt(alpha[n + 1]) * predicted_x0 + np.sqrt(1 - alpha[n + 1]) * eps
    np.testing.assert_allclose(process.alpha(ts[-1]) * y, x_ddim, atol=1e-5)


def test_drift_takes_one_image_or_a_batch():
    drift = ReverseDrift(predictor())
    y = jr.normal(jr.key(0), (3, 2, 2, 1))
    batch = drift(1.5, y, None)
    np.testing.assert_allclose(batch, 2 * exact_noise(y, 1.5), rtol=1e-5)
    np.testing.assert_allclose(jnp.stack([drift(1.5, yi, None) for yi in y]), batch, rtol=1e-6)


def gaussian_start(key, shape):
    """The exact law at `s_max`."""
    return MU + jnp.sqrt(C**2 + PROCESSES[1].s_max ** 2) * jr.normal(key, shape)


def assert_gaussian_end(y):
    """Mean and variance of the law at `s_min`. The Euler steps of these tests add 0.5% to the variance,
    half a standard error of 16,000 samples."""
    assert_mean(y, MU)
    assert_mean((y - MU) ** 2, C**2 + PROCESSES[1].s_min ** 2)


@pytest.mark.slow
def test_reverse_sde_ends_in_the_distribution_of_the_data():
    # Seed 0: 16,000 independent pixels, 5 standard errors.
    start, noise = jr.split(jr.key(0))
    ts = PROCESSES[1].grid(400)
    path = ml.GridBrownianPath(ts, (16_000, 1, 1, 1), key=noise)
    terms = diffrax.MultiTerm(diffrax.ODETerm(ReverseDrift(predictor())), reverse_diffusion(path))
    y = sample(terms, diffrax.Euler(), ts, gaussian_start(start, (16_000, 1, 1, 1)))
    assert_gaussian_end(np.ravel(y))


@pytest.mark.slow
def test_multilevel_reverse_sde_ends_there_too_in_spite_of_a_wrong_level():
    # Seed 0: 4,000 trajectories with their own coins, 5 standard errors. The cheap level is the score of
    # N(-0.7, 1), whose own end is nowhere near; independent coins at p = 1/2 add another 0.3% variance.
    ts = PROCESSES[1].grid(400)
    cheap, exact = ReverseDrift(predictor(mu=-0.7, c=1.0)), ReverseDrift(predictor())

    def run(probabilities, levels, key):
        start, noise, coins = jr.split(key, 3)
        path = ml.GridBrownianPath(ts, (1, 1, 1), key=noise)
        terms = diffrax.MultiTerm(ml.MultilevelTerm(*levels), reverse_diffusion(path))
        solver = ml.MLEM(probabilities, coins=ml.IndependentCoins(), key=coins, shared=False)
        return sample(terms, solver, ts, gaussian_start(start, (1, 1, 1)))

    keys = jr.split(jr.key(0), 4_000)
    y = jax.jit(jax.vmap(lambda key: run([1.0, 0.5], [cheap, exact], key)))(keys)
    assert_gaussian_end(np.ravel(y))
    alone = jax.jit(jax.vmap(lambda key: run([1.0], [cheap], key)))(keys)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_gaussian_end(np.ravel(alone))
