"""Calibration and budgets against closed forms on linear hierarchies. Plans are in test_plan.py."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import stand_in, tiny_config
from problems import as_user, mlem, remeasured, solve

import mlem_jax as ml
from mlem_jax.diffusion import Ladder

DIM, STEPS = 6, 24
MATRICES = [
    -jnp.eye(DIM) + scale * jr.normal(jr.key(k), (DIM, DIM)) / DIM**0.5
    for k, scale in enumerate((0.5, 0.2, 0.1))
]
MATRICES = [sum(MATRICES[: k + 1], jnp.zeros((DIM, DIM))) for k in range(3)]
LEVELS = [lambda t, y, args, m=m: m @ y for m in MATRICES]
COSTS = (1.0, 5.0, 25.0)
QUIET = dict(trials=(), progress=False)


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


@pytest.mark.slow
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("sensitivity", [1, 2])
def test_increments_and_effects_of_linear_levels(backward, sensitivity):
    # Seed 5; 64 pilots with 64 directions each: the estimate of an effect has a relative standard error
    # below 0.5 * sqrt(2 / 4096) = 1.1 %; the tolerance is 6 %.
    ts = jnp.linspace(0.0, 1.5, STEPS + 1) ** 1.3
    ts = ts[::-1] if backward else ts
    y0s = jr.normal(jr.key(4), (64, DIM))
    term = ml.MultilevelTerm(*LEVELS, costs=COSTS)
    found = ml.calibrate(
        term, ts, y0s, key=jr.key(5), probes=64, sensitivity_level=sensitivity, batch_size=24, **QUIET
    )
    plain, weighted = closed_form(ts, y0s, sensitivity)
    found = found.measurements
    np.testing.assert_allclose(found.increment_rms, plain, rtol=1e-3)
    np.testing.assert_allclose(found.effect_rms, weighted, rtol=0.06)
    np.testing.assert_allclose(found.costs, [0.04, 0.2, 1.0], rtol=1e-6)
    np.testing.assert_allclose(found.ts, ts)
    assert found.effects.shape == (STEPS, 3, 64, 64)


@pytest.mark.slow
def test_additive_noise_moves_the_trajectories_but_not_the_derivatives():
    # D_2 is constant here, so its effect does not depend on the noise; D_1 = -y does.
    ts = jnp.linspace(0.0, 1.0, STEPS + 1)
    levels = [lambda t, y, args: -y, lambda t, y, args: 1 - y]
    term = ml.MultilevelTerm(*levels, costs=(1, 10))
    noise = diffrax.ControlTerm(lambda t, y, args: jnp.eye(3), ml.GridBrownianPath(ts, (3,), key=jr.key(0)))
    y0s = jnp.zeros((8, 3))
    sde = ml.calibrate(diffrax.MultiTerm(term, noise), ts, y0s, key=jr.key(1), **QUIET).measurements
    ode = ml.calibrate(term, ts, y0s, key=jr.key(1), **QUIET).measurements
    np.testing.assert_allclose(sde.effect_rms[:, 1], ode.effect_rms[:, 1], rtol=1e-5)
    assert np.max(np.abs(sde.increment_rms[:, 0] - ode.increment_rms[:, 0])) > 0.1


@pytest.mark.slow
def test_pytree_states_count_every_component_once():
    ts = jnp.linspace(0.0, 1.0, 5)
    half = lambda t, y, args: jax.tree.map(lambda x: -0.5 * x, y)  # noqa: E731
    full = lambda t, y, args: jax.tree.map(lambda x: -x, y)  # noqa: E731
    split = ml.calibrate(
        ml.MultilevelTerm(half, full, costs=(1, 2)),
        ts,
        {"a": jnp.ones((3, 2)), "b": (jnp.full((3, 1, 2), 2.0),)},
        key=jr.key(0),
        **QUIET,
    )
    # At the first time D_2 = -y / 2 with y = (1, 1, 2, 2).
    np.testing.assert_allclose(split.measurements.increment_rms[0, 1], np.sqrt(2.5) / 2, rtol=1e-6)


@pytest.mark.slow
def test_noise_of_its_own_for_each_pilot():
    # D_2 = 1 - 2 y sees the noise; without noise all pilots are alike.
    ts = jnp.linspace(0.0, 1.0, STEPS + 1)
    term = ml.MultilevelTerm(lambda t, y, args: y, lambda t, y, args: 1 - y, costs=(1, 10))

    def make(key):
        path = ml.GridBrownianPath(ts, (1,), key=key)
        return diffrax.MultiTerm(term, diffrax.ControlTerm(lambda t, y, args: jnp.eye(1), path))

    # One direction of one component: J D_2 up to its sign, along paths that only the noise makes differ.
    y0s = jnp.zeros((6, 1))
    own = ml.calibrate(make, ts, y0s, key=jr.key(1), probes=1, **QUIET)
    shared = ml.calibrate(make(jr.key(0)), ts, y0s, key=jr.key(1), probes=1, **QUIET)
    assert np.std(np.abs(own.measurements.effects[-1, 1]), axis=0) > 0.1
    assert np.std(np.abs(shared.measurements.effects[-1, 1]), axis=0) < 1e-6


@pytest.mark.slow
def test_errors_of_single_levels_against_closed_forms():
    # Euler on dy/dt = -y and the exact solution exp(-1) of the finest level.
    ts = jnp.linspace(0.0, 1.0, 65)
    term = ml.MultilevelTerm(lambda t, y, args: -0.9 * y, lambda t, y, args: -y, costs=(1, 10))
    found = ml.calibrate(term, ts, jnp.ones((2, 3)), key=jr.key(0), **QUIET).measurements
    assert found.single_steps.tolist() == [8, 16, 32, 64]
    steps = np.array([8, 16, 32, 64])
    for level, rate in enumerate((0.9, 1.0)):
        exact = np.abs((1 - rate / steps) ** steps - np.exp(-1))
        # The reference is extrapolated once: its own error is of order 64 ** -2.
        np.testing.assert_allclose(found.single_error[level], exact, atol=1e-4)
    # Beyond the last count: first order for the finest level, no better for the other.
    assert found.single_level_error(1, 256) == pytest.approx(found.single_error[1, -1] / 4, rel=0.05)
    assert found.single_level_error(0, 256) == pytest.approx(found.single_error[0, -1])


def test_calibration_file_round_trip_and_what_it_belongs_to(tmp_path):
    ts, y0s = jnp.linspace(0.0, 1.0, 5), jnp.ones((2, DIM))
    term = ml.MultilevelTerm(*LEVELS, costs=COSTS)
    calibration = ml.calibrate(term, ts, y0s, key=jr.key(0), **QUIET)
    calibration.save(tmp_path / "c.npz")
    again = ml.Calibration.load(tmp_path / "c.npz")
    np.testing.assert_array_equal(again.measurements.effects, calibration.measurements.effects)
    assert again.measurements.levels_id == calibration.measurements.levels_id and str(again) == str(
        calibration
    )
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]
    again.require(term.levels, y0s[0])
    with pytest.raises(ValueError, match="measured with a state"):
        again.require(term.levels, jnp.ones(DIM + 1))
    with pytest.raises(ValueError, match="measured with 3 levels and is used with 2"):
        again.require(term.levels[:2], y0s[0])
    np.savez(tmp_path / "other.npz", x=np.ones(2))
    with pytest.raises(ValueError, match="not a calibration"):
        ml.Calibration.load(tmp_path / "other.npz")


class Linear(eqx.Module):
    rate: jax.Array

    def __call__(self, t, y, args):
        return -self.rate * y


def test_a_calibration_knows_the_numbers_inside_its_levels():
    levels = Linear(jnp.asarray(0.9)), Linear(jnp.asarray(1.0))
    found = ml.calibrate(
        ml.MultilevelTerm(*levels, costs=(1, 2)),
        jnp.linspace(0.0, 1.0, 5),
        jnp.ones((2, 1)),
        key=jr.key(0),
        **QUIET,
    )
    with pytest.raises(ValueError, match="number 2 differ"):
        found.require((levels[0], Linear(jnp.asarray(1.1))), jnp.ones(1))


@pytest.mark.slow
def test_costs_are_counted_where_none_are_given():
    big = jr.normal(jr.key(0), (64, 64)) / 64
    small = big[:8, :8]
    cheap = lambda t, y, args: -y.at[:8].add(small @ y[:8])  # noqa: E731
    fine = lambda t, y, args: -big @ y  # noqa: E731
    found = ml.calibrate(
        ml.MultilevelTerm(cheap, fine), jnp.linspace(0.0, 1.0, 5), jnp.ones((2, 64)), key=jr.key(0), **QUIET
    )
    assert found.costs[1] == 1.0 and 0.0 < found.costs[0] < 0.1
    assert np.all(found.measurements.seconds > 0)


def test_calibrate_says_what_is_missing():
    ts, y0s = jnp.linspace(0.0, 1.0, 5), jnp.ones((2, DIM))
    with pytest.raises(ValueError, match=r"y0s with arrays of shapes .*write y0\[None\]"):
        ml.calibrate(ml.MultilevelTerm(*LEVELS), ts, {"a": y0s, "b": y0s[0]}, key=jr.key(0))
    with pytest.raises(ValueError, match=r"Write MultilevelTerm\(\.\.\., costs"):
        ml.calibrate(ml.MultilevelTerm(*LEVELS), ts, y0s, key=jr.key(0), costs=(1.0, 2.0))
    with pytest.raises(ValueError, match="multiple of 4, for example"):
        ml.calibrate(ml.MultilevelTerm(*LEVELS), ts[:-1], y0s, key=jr.key(0))
    with pytest.raises(ValueError, match="calibrate was given ODETerm; .* in place of ODETerm"):
        ml.calibrate(diffrax.ODETerm(LEVELS[0]), ts, y0s, key=jr.key(0))
    # Seeds instead of keys, of every type.
    for name, key in (("calibrate", np.int64(3)), ("fit_steps", 3), ("calibrate", jnp.array(3))):
        with (
            as_user(),
            pytest.raises(ValueError, match=rf"{name} was given key=3; write key=jax.random.key\(3\)"),
        ):
            getattr(ml, name)(ml.MultilevelTerm(*LEVELS), ts, y0s, key=key)


@pytest.mark.slow
@pytest.mark.parametrize("p", [(1.0, 0.3, 0.05), (1.0, 1.0, 0.2), (0.5, 0.5, 1.0)])
def test_expected_evaluations_are_the_mean_of_the_counts(p):
    # 400 coin seeds of 50 steps each; 5 standard errors.
    ts = jnp.linspace(0.0, 1.0, 51)
    term = ml.MultilevelTerm(*[lambda t, y, args, k=k: -k * y for k in (1.0, 1.1, 1.2)])
    solver = lambda key: mlem(p, key, shared=False)  # noqa: E731
    counts = jax.vmap(lambda key: solve(term, solver(key), 1.0, steps=50).solver_state.evaluations)(
        jr.split(jr.key(0), 400)
    )
    expected = np.asarray(ml.expected_evaluations(ml.ConstantProbabilities(p), ts))
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


def test_a_compiler_that_does_not_count_flops_is_named(monkeypatch):
    """Some devices' clients return nothing."""
    monkeypatch.setattr(jax.stages.Compiled, "cost_analysis", lambda compiled: None)
    term = ml.MultilevelTerm(lambda t, y, args: -y, lambda t, y, args: -2 * y)
    ts, y0s = jnp.linspace(0.0, 1.0, 5), jr.normal(jr.key(0), (4, 3))
    with pytest.raises(ValueError, match=r"XLA reports \[0.0, 0.0\] FLOPs .* costs='seconds'"):
        ml.calibrate(term, ts, y0s, key=jr.key(1), **QUIET)


@pytest.mark.slow
def test_costs_by_the_clock_and_by_flops():
    # 300 matrix products against none: any clock sees that.
    heavy = lambda t, y, args: -y + 0 * jnp.linalg.matrix_power(jnp.outer(y, y) / 1e3, 300)[0]  # noqa: E731
    term = ml.MultilevelTerm(lambda t, y, args: -y, heavy, costs=(1, 2))
    ts, y0s = jnp.linspace(0.0, 1.0, 5), jr.normal(jr.key(0), (4, 60))
    by_clock = ml.calibrate(term, ts, y0s, key=jr.key(1), costs="seconds", **QUIET)
    np.testing.assert_allclose(
        by_clock.costs, by_clock.measurements.seconds / by_clock.measurements.seconds[-1]
    )
    by_flops = ml.calibrate(term, ts, y0s, key=jr.key(1), costs="flops", **QUIET)
    assert by_flops.costs[0] < 0.01
    given = ml.calibrate(term, ts, y0s, key=jr.key(1), **QUIET)
    np.testing.assert_allclose(given.costs, [0.5, 1.0])


def test_costs_of_tiny_levels_stay_apart_from_their_numbers():
    """A first level of 1.2346e-4 evaluations of the finest one: nine characters, after its number."""
    config = tiny_config()
    ladder = Ladder(config.networks(), config, {}, {})
    printed = str(remeasured(stand_in(ladder), costs=np.array([1.2346e-4, 1.0])))
    below = printed[printed.index("kurtosis") :].splitlines()[1:3]
    assert [line.split()[:2] for line in below] == [["1", "0.0001235"], ["2", "1"]]


@pytest.mark.slow
def test_pilots_that_explode_are_refused_and_coarse_runs_that_explode_are_recorded():
    # Explicit Euler on dy = -y^3 with y0 = 3 is stable for steps below 2 / 9 and explodes for large ones.
    levels = [lambda t, y, args: -0.9 * y**3, lambda t, y, args: -(y**3)]
    term = ml.MultilevelTerm(*levels, costs=(1, 10))
    y0s = jnp.full((4, 3), 3.0)
    with pytest.raises(
        ValueError, match="4 of 4 pilot trajectories .* with 32 steps.* finer ts, for example 128"
    ):
        ml.calibrate(term, jnp.linspace(0.0, 30.0, 33), y0s, key=jr.key(0), **QUIET)
    found = ml.calibrate(term, jnp.linspace(0.0, 8.0, 257), y0s, key=jr.key(0), **QUIET)
    measured = found.measurements
    assert np.isinf(measured.single_error[1, 0]) and np.isfinite(measured.single_error[1, -1])
    assert np.all(np.isfinite(measured.single_uncertainty))
    assert len(found.plan(budget=30.0).ts) - 1 > measured.single_steps[0]
