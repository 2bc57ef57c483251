"""One adapter for every process, prediction, conditioning and layout, against exact scores."""

import diffrax
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from exact_scores import (
    BETAS,
    CONDITIONINGS,
    ExactNetwork,
    GAUSSIAN,
    linear_alpha,
    MIXTURE,
    PROCESSES,
    run,
    S_MAX,
    S_MIN,
)
from problems import as_user, assert_mean

import mlem_jax as ml
from mlem_jax.diffusion import (
    EDM,
    FlowMatching,
    NoisePredictor,
    Preconditioned,
    ProbabilityFlow,
    sampling_terms,
    VariancePreserving,
)

PREDICTIONS = ["eps", "x0", "v", "score", "velocity"]
every_process = pytest.mark.parametrize("name", PROCESSES)


def exact(name, prediction, conditioning="log_s", data=MIXTURE):
    network = ExactNetwork(data, name, prediction, conditioning)
    return NoisePredictor(network, PROCESSES[name], prediction, CONDITIONINGS[conditioning])


def starts(n=5, key=0):
    return S_MAX * jr.normal(jr.key(key), (n, 2))


def euler(noise, ts, y):
    """Plain Euler in `(y, s)`, without the library."""
    ts = np.asarray(ts)
    for s, following in zip(ts[:-1], ts[1:], strict=True):
        y = y + (following - s) * noise(y, jnp.asarray(s))
    return y


@pytest.mark.slow
@every_process
def test_all_predictions_and_conditionings_follow_the_exact_trajectories(name, x64):
    # One step function for all, uncompiled: 25 networks take longer to compile than to run.
    ts, y0 = PROCESSES[name].grid(12), starts()
    reference = euler(MIXTURE.noise, ts, y0)
    assert np.std(reference) > 0.3
    for prediction in PREDICTIONS:
        for conditioning in CONDITIONINGS:
            level = ProbabilityFlow(exact(name, prediction, conditioning))
            end = euler(lambda y, s, level=level: level(s, y, None), ts, y0)
            # Far inside the 1e-4 that is promised.
            np.testing.assert_allclose(end, reference, atol=1e-8)


def every_process_at_once(data):
    """A drift for a list of states, one per process, each with the velocity of that process."""
    levels = [ProbabilityFlow(exact(name, "velocity", "time", data)) for name in PROCESSES]
    return diffrax.ODETerm(lambda s, ys, args: [f(s, y, args) for f, y in zip(levels, ys, strict=True)])


@pytest.mark.slow
def test_all_processes_end_at_the_closed_form_for_a_gaussian(x64):
    y0, ts = starts(), PROCESSES["edm"].grid(400)
    ends = run(every_process_at_once(GAUSSIAN), diffrax.Heun(), ts, [y0] * len(PROCESSES))
    # Along each axis of the covariance the distance to the mean scales as the deviation.
    size, axes = np.linalg.eigh(np.asarray(GAUSSIAN.covariances[0]))
    shrink = axes * np.sqrt((size + S_MIN**2) / (size + S_MAX**2)) @ axes.T
    mean = np.asarray(GAUSSIAN.means[0])
    for end in ends:
        np.testing.assert_allclose(end, mean + (np.asarray(y0) - mean) @ shrink, atol=1e-4)


@pytest.mark.slow
def test_samples_have_the_mean_and_covariance_of_the_mixture():
    """z-tests at 5 standard errors, n = 8,000 for each process, seeds 0 to 5."""
    y0s = [MIXTURE.draw(jr.key(i), 8_000, S_MAX) for i in range(len(PROCESSES))]
    ends = run(every_process_at_once(MIXTURE), diffrax.Heun(), PROCESSES["edm"].grid(60), y0s)
    mean, covariance = MIXTURE.moments(S_MIN)
    for y in ends:
        assert_mean(y, mean)
        off = np.asarray(y, np.float64) - mean
        assert_mean(off[:, :, None] * off[:, None, :], covariance)


def test_levels_of_different_processes_stand_in_one_ladder(x64):
    # All are exact, so that the increments vanish and coins change nothing.
    ts, y0 = PROCESSES["edm"].grid(32), starts()
    terms = sampling_terms(
        exact("linear", "eps", "time"), exact("flow", "velocity", "time"), exact("edm", "x0", "sigma")
    )
    solver = ml.MLEM([1.0, 0.5, 0.3], coins=ml.IndependentCoins(), key=jr.key(0))
    end = run(terms, solver, ts, y0)
    np.testing.assert_allclose(end, euler(MIXTURE.noise, ts, y0), atol=1e-8)


# Against samplers of the papers, in their own variables.


def test_euler_is_ddim_with_the_linear_schedule_and_its_time(x64):
    process = VariancePreserving(betas=BETAS)

    def network(x, t):
        return jnp.tanh(2 * x + t)

    ts = process.grid(25, spacing="time")
    x = jr.normal(jr.key(0), (3, 4))
    predictor = NoisePredictor(network, process, "eps", conditioning="time")
    y = run(sampling_terms(predictor), diffrax.Euler(), ts, x / process.alpha(ts[0]))

    # Song, Meng & Ermon 2021, equation 12 with sigma_t = 0; their alpha_t is the square of ours.
    times = jnp.linspace(process.t(ts[0]), process.t(ts[-1]), 26)
    bar = np.asarray(linear_alpha(times) ** 2)
    for n in range(25):
        eps = np.tanh(2 * np.asarray(x) + float(times[n]))
        x0 = (x - np.sqrt(1 - bar[n]) * eps) / np.sqrt(bar[n])
        x = np.sqrt(bar[n + 1]) * x0 + np.sqrt(1 - bar[n + 1]) * eps
    np.testing.assert_allclose(process.alpha(ts[-1]) * y, x, atol=1e-5)


@pytest.mark.parametrize("noise_at", [0, 1])
def test_euler_is_euler_in_time_for_flow_matching(noise_at, x64):
    # Straight lines: the step of the velocity field is the step of DDIM.
    process = FlowMatching(noise_at=noise_at)

    def velocity(x, t):
        return jnp.sin(3 * x + t)

    ts = process.grid(25, spacing="time")
    x = jr.normal(jr.key(0), (3, 4))
    predictor = NoisePredictor(velocity, process, "velocity", conditioning="time")
    y = run(sampling_terms(predictor), diffrax.Euler(), ts, x / process.alpha(ts[0]))
    times = np.asarray(process.t(ts))
    assert (times[0] > 0.9) == (noise_at == 1)
    for t, following in zip(times[:-1], times[1:], strict=True):
        x = x + (following - t) * velocity(x, t)
    np.testing.assert_allclose(process.alpha(ts[-1]) * y, x, atol=1e-5)


# Preconditioning.


def test_preconditioning_is_that_of_edm(x64):
    deviation = 0.7

    def raw(x, c_noise):
        # The network for which D = c_skip x + c_out F(c_in x; c_noise) is the exact denoiser.
        sigma = jnp.exp(4 * c_noise)
        power = sigma**2 + deviation**2
        x = x * jnp.sqrt(power)
        denoised = x + sigma**2 * MIXTURE.score(x, 1.0, sigma)
        return (denoised - deviation**2 / power * x) / (sigma * deviation / jnp.sqrt(power))

    predictor = NoisePredictor(Preconditioned(raw, deviation), EDM(), "x0", conditioning="sigma")
    for s in jnp.geomspace(0.002, 80.0, 4):
        y = 0.3 + (1 + s) * starts() / S_MAX
        np.testing.assert_allclose(predictor(y, s), MIXTURE.noise(y, s), atol=1e-9)


def test_preconditioned_silence_is_exact_for_gaussian_data(x64):
    network = Preconditioned(lambda x, c_noise: jnp.zeros_like(x), 0.7)
    predictor = NoisePredictor(network, EDM(), "x0", conditioning="sigma")
    y, s = starts(), jnp.asarray(1.3)
    np.testing.assert_allclose(predictor(y, s), s * y / (s**2 + 0.7**2), atol=1e-12)


# Layouts, shapes and dtypes.


def test_any_layout_gives_the_same_noise():
    x, s = jr.normal(jr.key(0), (2, 3, 4, 5)), jnp.asarray(1.7)
    for prediction in ("x0", "velocity"):
        predictor = NoisePredictor(lambda x, c: jnp.sin(x + c), FlowMatching(), prediction)
        expected = predictor(x, s)
        np.testing.assert_array_equal(predictor(jnp.moveaxis(x, 1, -1), s), jnp.moveaxis(expected, 1, -1))
        np.testing.assert_array_equal(predictor(x.reshape(2, -1), s), expected.reshape(2, -1))
        np.testing.assert_array_equal(predictor(x[1], s), expected[1])
        np.testing.assert_allclose(predictor(x[1, 0, 0, 0], s), expected[1, 0, 0, 0], rtol=1e-6)


def test_a_network_of_other_layout_and_signature_is_wrapped_in_one_expression():
    convolution = eqx.nn.Conv2d(3, 3, 3, padding=1, key=jr.key(0))
    network = eqx.Partial(
        lambda network, x, t: jnp.moveaxis(network(jnp.moveaxis(x, -1, 0)), 0, -1), convolution
    )
    level = ProbabilityFlow(NoisePredictor(network, FlowMatching(), "velocity", conditioning="time"))
    y = jr.normal(jr.key(1), (6, 6, 3))
    # eps = x + (1 - t) u, with x = (1 - t) y and t = 2/3.
    x = y / 3
    expected = x + jnp.moveaxis(convolution(jnp.moveaxis(x, -1, 0)), 0, -1) / 3
    np.testing.assert_allclose(level(2.0, y, None), expected, atol=1e-6)
    # The parameters are not hidden in a closure.
    assert len(eqx.filter(level, eqx.is_array).predictor.network.args) == 1


def test_a_narrow_network_returns_the_states_dtype():
    def network(x, c):
        return jnp.tanh(x.astype(jnp.bfloat16))

    for prediction in PREDICTIONS:
        predictor = NoisePredictor(network, FlowMatching(), prediction)
        assert predictor(jnp.ones(3), jnp.asarray(0.5)).dtype == jnp.float32


def test_bad_adapters_say_what_to_write():
    def network(x, c):
        return jnp.concatenate([x, x], axis=-1)

    with as_user():
        with pytest.raises(ValueError, match="network of type dict; a callable.*eqx.Partial"):
            NoisePredictor({"w": jnp.ones(2)}, EDM())
        for process in (EDM, "edm"):
            with pytest.raises(ValueError, match=r"process=.*an instance is expected, for example Var"):
                NoisePredictor(network, process)
    with pytest.raises(
        ValueError, match=r"conditioning='t'.*\('log_s', 'log_snr', 'sigma', 'time'\), or a f"
    ):
        NoisePredictor(network, EDM(), conditioning="t")
    with pytest.raises(
        ValueError, match=r"returned an array of shape \(4, 6\) for an input of shape \(4, 3\)"
    ):
        NoisePredictor(network, EDM(), "eps")(jnp.ones((4, 3)), jnp.asarray(1.0))
    for deviation in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"sigma_data={deviation}; a positive number"):
            Preconditioned(network, deviation)
