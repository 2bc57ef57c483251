"""Between probability flow and reverse SDE: the law of the end does not depend on the stochasticity, and Euler
converges to it."""

import diffrax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from exact_scores import GAUSSIAN, MIXTURE, PROCESSES, run, S_MAX, S_MIN
from problems import as_user, assert_mean, slope

import mlem_jax as ml
from mlem_jax.diffusion import (
    NoisePredictor,
    NoisyTerms,
    ProbabilityFlow,
    reverse_diffusion,
    ReverseDrift,
    sampling_terms,
    StochasticDrift,
)

PROCESS = PROCESSES["edm"]


def exact(data):
    return NoisePredictor(data.noise, PROCESS, "eps", "sigma")


@pytest.mark.slow
@pytest.mark.parametrize("stochasticity", [0.0, 0.4, 1.0, 1.5])
def test_the_end_has_the_law_of_the_data_at_any_stochasticity(stochasticity):
    """z-tests at 5 standard errors, n = 10,000, seed 0. Euler's own error of the variances is below one."""
    ts = PROCESS.grid(250)
    start, noise = jr.split(jr.key(0))
    y0 = GAUSSIAN.draw(start, 10_000, S_MAX)
    path = ml.GridBrownianPath(ts, y0.shape, key=noise)
    terms = sampling_terms(exact(GAUSSIAN), stochasticity=stochasticity, brownian_motion=path)
    y = run(terms, diffrax.Euler(), ts, y0)
    mean, covariance = GAUSSIAN.moments(S_MIN)
    assert_mean(y, mean)
    off = np.asarray(y, np.float64) - mean
    assert_mean(off[:, :, None] * off[:, None, :], covariance)


@pytest.mark.slow
def test_euler_converges_path_by_path_at_first_order(x64):
    # The noise does not depend on the state, so that the strong order is one too. Seed 0, 200 paths.
    fine = PROCESS.grid(512, spacing="log")
    y0 = MIXTURE.draw(jr.key(0), 200, S_MAX)
    path = ml.GridBrownianPath(fine, y0.shape, key=jr.key(1))
    terms = sampling_terms(exact(MIXTURE), stochasticity=0.7, brownian_motion=path)
    ends = {n: run(terms, diffrax.Euler(), fine[:: 512 // n], y0) for n in (32, 128, 512)}
    errors = [np.sqrt(np.mean((ends[n] - ends[512]) ** 2)) for n in (32, 128)]
    # Against a solution of 512 steps errors of 1 / n have the slope -1.16.
    assert -1.3 < slope([32, 128], errors) < -0.9
    assert errors[-1] < 0.1


def test_terms_of_the_ends_of_the_family_are_flow_and_reverse_sde():
    path = ml.GridBrownianPath(PROCESS.grid(4), (5, 2), key=jr.key(0))
    predictor = exact(MIXTURE)
    flow = sampling_terms(predictor, predictor, costs=[1, 2])
    assert flow.costs == (1.0, 2.0) and flow.levels == (ProbabilityFlow(predictor),) * 2
    assert sampling_terms(predictor, stochasticity=0, brownian_motion=path).levels == flow.levels[:1]
    drift, noise = sampling_terms(predictor, stochasticity=1.0, brownian_motion=path).terms
    assert drift.levels == (ReverseDrift(predictor),) and isinstance(noise, diffrax.ControlTerm)

    y, s = jnp.ones((5, 2)), 0.7
    eps = ProbabilityFlow(predictor)(s, y, None)
    np.testing.assert_allclose(ReverseDrift(predictor)(s, y, None), 2 * eps, rtol=1e-6)
    for eta in (0.0, 0.5, 1.0, jnp.asarray(2.0)):
        np.testing.assert_allclose(StochasticDrift(predictor, eta)(s, y, None), (1 + eta**2) * eps, rtol=1e-6)
        scale = reverse_diffusion(path, eta).vf(s, y, None).diagonal
        np.testing.assert_allclose(scale, jnp.full((5, 2), eta * np.sqrt(2 * s)), rtol=1e-6)
    pilots = NoisyTerms(flow, PROCESS.grid(4), (2,), 0.5)(jr.key(0))
    np.testing.assert_allclose(pilots.terms[1].vf(s, y[0], None).diagonal, 0.5 * np.sqrt(2 * s), rtol=1e-6)


def test_calibrations_of_different_stochasticities_are_told_apart():
    from mlem_jax._fingerprint import level_id

    ids = {level_id(StochasticDrift(exact(MIXTURE), eta)) for eta in (0.2, 0.3)}
    assert len(ids) == 2


def test_bad_terms_say_what_to_write():
    predictor = exact(MIXTURE)
    for bad in (-0.1, float("inf"), float("nan")):
        for make in (
            lambda bad=bad: sampling_terms(predictor, stochasticity=bad),
            lambda bad=bad: StochasticDrift(predictor, bad),
            lambda bad=bad: reverse_diffusion(ml.GridBrownianPath(PROCESS.grid(2), (2,), key=jr.key(0)), bad),
        ):
            with pytest.raises(
                ValueError, match=f"stochasticity={bad}; a number of at least 0.*1 for the rev"
            ):
                make()
    with pytest.raises(
        ValueError, match=r"stochasticity=0.5 needs noise.*brownian_motion=.*GridBrownianPath"
    ):
        sampling_terms(predictor, stochasticity=0.5)
    with as_user():
        with pytest.raises(
            ValueError, match="Level 2 of sampling_terms is a ProbabilityFlow; a NoisePredictor"
        ):
            sampling_terms(predictor, ProbabilityFlow(predictor))
