"""The least-squares fit of one step: exact coefficients, noise, outliers, held-out groups, classical coefficients."""

import numpy as np

import mlem_jax as ml
from mlem_jax._calibration.fit_step import Choice, everyone, fit_step, left_out, normal_equations
from mlem_jax._calibration.fit_subsets import step_subsets


def synthetic(noise, outlier=0.0, pilots=16, size=5, seed=0):
    """Two features; the target is 0.7 of the first and 0.3 of the second, plus noise."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(2, pilots, size))
    target = 0.7 * features[0] + 0.3 * features[1] + noise * draw.normal(size=(pilots, size))
    target[0] += outlier * features[0, 0]
    return normal_equations(features, target)


SUBSETS = [((0,), np.array([0.65])), ((0, 1), np.array([0.65, 0.25]))]


def test_without_noise_the_coefficients_are_found():
    coefficients, choice = fit_step(synthetic(0.0), SUBSETS, everyone(16))
    np.testing.assert_allclose(coefficients, [[0.7, 0.3]], atol=1e-4)
    assert choice.features == (0, 1)


def test_classical_coefficients_integrate_the_drift_and_hold_the_finest_increment():
    # A step from 1 to 1.5 after two others: of the drift t (newest first: 1, and twice 0.5 less) the integral is 0.625,
    # or 0.5 with one drift; the newest increment of level 3, of 2, is held. Level 2's and older ones are not used.
    features = np.array([1.0, 0.5, 0.5, 7.0, 2.0, 7.0])
    times = 0.5 * np.arange(4)
    weights = ml.MultistepCoefficients.adams_bashforth(times, drifts=3).drifts[-1]
    for chosen, prior in step_subsets(times, [1, 2], np.asarray(weights), "time"):
        drift = 0.5 if 1 not in chosen else 0.625
        np.testing.assert_allclose(prior @ features[list(chosen)], drift + 0.5 * 2.0)


def test_noise_leaves_the_classical_coefficients():
    # Noise 100 times as large as what there is to gain: of 20 sets at most a few may prefer a fit by luck.
    kept = [fit_step(synthetic(5.0, seed=s), SUBSETS, left_out(16, 4))[1].ridge >= 0.1 for s in range(20)]
    assert sum(kept) >= 15


def test_an_outlier_moves_the_coefficients_little():
    clean, _ = fit_step(synthetic(0.01), SUBSETS, everyone(16))
    robust, _ = fit_step(synthetic(0.01, outlier=50.0), SUBSETS, everyone(16))
    # Squares alone would give about 0.7 + 50 / 16.
    assert abs(robust[0, 0] - clean[0, 0]) < 0.05


def test_groups_are_fitted_on_the_others():
    def fit(last):
        target = np.array([[1.0], [1.2], [0.9], [last]])
        choice = Choice((0,), np.array([0.0]), 1e-9)
        return fit_step(normal_equations(np.ones((1, 4, 1)), target), [], left_out(4, 4), choice)[0]

    # The last group has not seen its own pilot, all others have.
    np.testing.assert_allclose(fit(1.5)[3], fit(1.1)[3])
    np.testing.assert_allclose(fit(1.1)[3], 3.1 / 3, rtol=1e-6)
    assert np.all(fit(1.5)[:3] > fit(1.1)[:3] + 0.05)
