"""Calibration and budgets against closed forms on linear hierarchies."""

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import mlem, solve

import mlem_jax as ml

DIM, STEPS = 6, 24
MATRICES = [
    -jnp.eye(DIM) + scale * jr.normal(jr.key(k), (DIM, DIM)) / DIM**0.5
    for k, scale in enumerate((0.5, 0.2, 0.1))
]
MATRICES = [sum(MATRICES[: k + 1], jnp.zeros((DIM, DIM))) for k in range(3)]
LEVELS = [lambda t, y, args, m=m: m @ y for m in MATRICES]
COSTS = (1.0, 5.0, 25.0)


def closed_form(ts, y0s, sensitivity):
    """RMS of `D_k x_n` and of `J_n D_k x_n` along Euler on the finest level."""
    ts, y0s = np.asarray(ts, float), np.asarray(y0s, float)
    matrices = [np.asarray(m, float) for m in MATRICES]
    increments = [matrices[0], matrices[1] - matrices[0], matrices[2] - matrices[1]]
    steps, identity = np.diff(ts), np.eye(DIM)
    states = [y0s.T]
    for h in steps:
        states.append(states[-1] + h * matrices[2] @ states[-1])
    plain, weighted, jacobian = [], [], identity
    for n in reversed(range(len(steps))):
        kicks = [d @ states[n] for d in increments]
        plain.append([np.sqrt(np.mean(k**2)) for k in kicks])
        weighted.append([np.sqrt(np.mean((jacobian @ k) ** 2)) for k in kicks])
        jacobian = jacobian @ (identity + steps[n] * matrices[sensitivity])
    return np.array(plain[::-1]), np.array(weighted[::-1])


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("sensitivity", [1, 2])
def test_increments_and_effects_of_linear_levels(backward, sensitivity):
    # Seed 5; 64 pilots with 64 directions each: the estimate of an effect has a relative standard error
    # below 0.5 * sqrt(2 / 4096) = 1.1 %; the tolerance is 6 %.
    ts = jnp.linspace(0.0, 1.5, STEPS + 1) ** 1.3
    ts = ts[::-1] if backward else ts
    y0s = jr.normal(jr.key(4), (64, DIM))
    term = ml.MultilevelTerm(*LEVELS, costs=COSTS)
    found = ml.calibrate(term, ts, y0s, key=jr.key(5), probes=64, sensitivity_level=sensitivity)
    plain, weighted = closed_form(ts, y0s, sensitivity)
    np.testing.assert_allclose(found.increment, plain, rtol=1e-3)
    np.testing.assert_allclose(found.effect, weighted, rtol=0.06)
    np.testing.assert_allclose(found.costs, [0.04, 0.2, 1.0], rtol=1e-6)
    np.testing.assert_allclose(found.ts, ts[:-1])


def test_additive_noise_moves_the_trajectories_but_not_the_derivatives():
    # D_2 is constant here, so its effect does not depend on the noise; D_1 = -y does.
    ts = jnp.linspace(0.0, 1.0, STEPS + 1)
    levels = [lambda t, y, args: -y, lambda t, y, args: 1 - y]
    term = ml.MultilevelTerm(*levels, costs=(1, 10))
    noise = diffrax.ControlTerm(lambda t, y, args: jnp.eye(3), ml.GridBrownianPath(ts, (3,), key=jr.key(0)))
    y0s = jnp.zeros((8, 3))
    sde = ml.calibrate(diffrax.MultiTerm(term, noise), ts, y0s, key=jr.key(1))
    ode = ml.calibrate(term, ts, y0s, key=jr.key(1))
    np.testing.assert_allclose(sde.effect[:, 1], ode.effect[:, 1], rtol=1e-5)
    assert np.max(np.abs(sde.increment[:, 0] - ode.increment[:, 0])) > 0.1


def test_pytree_states_count_every_component_once():
    ts = jnp.linspace(0.0, 1.0, 5)
    half = lambda t, y, args: jax.tree.map(lambda x: -0.5 * x, y)  # noqa: E731
    full = lambda t, y, args: jax.tree.map(lambda x: -x, y)  # noqa: E731
    split = ml.calibrate(
        ml.MultilevelTerm(half, full, costs=(1, 2)),
        ts,
        {"a": jnp.ones((3, 2)), "b": (jnp.full((3, 1, 2), 2.0),)},
        key=jr.key(0),
    )
    # At the first time D_2 = -y / 2 with y = (1, 1, 2, 2).
    np.testing.assert_allclose(split.increment[0, 1], np.sqrt(2.5) / 2, rtol=1e-6)


def test_probabilities_meet_the_budget_and_follow_the_allocation():
    ts = np.linspace(0.0, 1.0, 101)
    effect = np.stack([np.ones(50), np.linspace(0.1, 0.4, 50), np.linspace(0.02, 0.01, 50)], axis=1)
    calibration = ml.Calibration(np.linspace(0.0, 0.98, 50), effect, effect, np.array([0.01, 0.1, 1.0]))
    p = calibration.probabilities(ts, budget=6.0)
    assert float(ml.expected_evaluations(p, ts) @ calibration.costs) == pytest.approx(6.0, rel=1e-3)
    early, late = p(0.2, 0.01), p(0.8, 0.01)
    assert float(early[0]) == float(late[0]) == 1.0
    # p_k is proportional to effect_k / sqrt(C_k + C_{k-1}) where it is below 1.
    pair = np.sqrt([0.11, 1.1])
    wanted = np.array([np.interp(0.2, calibration.ts, effect[:, k]) for k in (1, 2)]) / pair
    assert float(early[1] / early[2]) == pytest.approx(wanted[0] / wanted[1], rel=1e-4)


def test_calibration_file_round_trip(tmp_path):
    values = np.arange(6.0).reshape(3, 2)
    calibration = ml.Calibration(np.arange(3.0), values, values + 1, np.array([0.1, 1.0]))
    calibration.save(tmp_path / "c.npz")
    again = ml.Calibration.load(tmp_path / "c.npz")
    np.testing.assert_array_equal(again.effect, calibration.effect)
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]
    np.savez(tmp_path / "other.npz", x=values)
    with pytest.raises(ValueError, match="not a calibration"):
        ml.Calibration.load(tmp_path / "other.npz")


def test_calibrate_says_what_is_missing():
    ts, y0s = jnp.linspace(0.0, 1.0, 3), jnp.ones((2, DIM))
    with pytest.raises(ValueError, match="one level; use diffrax.Euler"):
        ml.calibrate(ml.MultilevelTerm(LEVELS[0]), ts, y0s, key=jr.key(0))
    with pytest.raises(ValueError, match=r"Write MultilevelTerm\(\.\.\., costs"):
        ml.calibrate(ml.MultilevelTerm(*LEVELS), ts, y0s, key=jr.key(0))
    with pytest.raises(ValueError, match="in place of ODETerm"):
        ml.calibrate(diffrax.ODETerm(LEVELS[0]), ts, y0s, key=jr.key(0))


@pytest.mark.parametrize("p", [(1.0, 0.3, 0.05), (1.0, 1.0, 0.2), (0.5, 0.5, 1.0)])
def test_expected_evaluations_are_the_mean_of_the_counts(p):
    # 400 coin seeds of 50 steps each; 5 standard errors.
    ts = jnp.linspace(0.0, 1.0, 51)
    term = ml.MultilevelTerm(*[lambda t, y, args, k=k: -k * y for k in (1.0, 1.1, 1.2)])
    solver = lambda key: mlem(p, key, shared=False)  # noqa: E731
    counts = jax.vmap(lambda key: solve(term, solver(key), 1.0, steps=50).solver_state.evaluations)(
        jr.split(jr.key(0), 400)
    )
    # Coins of equal probability that both come up have equal weights, and the coarser level cancels.
    both = 50 * p[0] * p[1] if p[0] == p[1] < 1 else 0.0
    expected = np.asarray(ml.expected_evaluations(ml.ConstantProbabilities(p), ts)) - [both, 0, 0]
    error = np.std(counts, axis=0) / 20
    assert np.all(np.abs(np.mean(counts, axis=0) - expected) <= 5 * error + 1e-4)


def test_scale_to_budget():
    ts = jnp.linspace(0.0, 1.0, 101)

    def family(scale):
        return ml.PowerLaw(COSTS, scale=scale)

    p = ml.scale_to_budget(family, COSTS, ts, 20.0)
    assert float(ml.expected_evaluations(p, ts) @ jnp.array(COSTS)) / 25 == pytest.approx(20.0, rel=1e-3)
    with pytest.raises(ValueError, match="Use diffrax.Euler"):
        ml.scale_to_budget(family, COSTS, ts, 1000.0)
    with pytest.raises(ValueError, match="Take fewer steps"):
        ml.scale_to_budget(
            lambda c: ml.TabulatedProbabilities([0.0, 1.0], [[1.0, min(c, 1.0), min(c, 1.0)]] * 2),
            COSTS,
            ts,
            1.0,
        )
