"""Coefficients fitted on pilots: closed forms, agreement with the solver, held-out pilots, noise, outliers."""

import importlib

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from fit_problems import (
    cheap,
    COSTS,
    fine,
    make_pilots,
    middle,
    Noisy,
    PLACES,
    starts,
    TS,
    TWO_LEVELS,
)
from problems import as_user

import mlem_jax as ml
from mlem_jax._calibration.fit_entries import _final
from mlem_jax._calibration.fit_pilots import _even_batches
from mlem_jax._calibration.fit_refine import _changed, _linearised, refine
from mlem_jax._calibration.fit_rollout import coefficients_of, Memory, roll_out, Schedule
from mlem_jax._calibration.fit_step import everyone, left_out
from mlem_jax._calibration.kept_parts import KeptParts
from mlem_jax._calibration.searcher import Found


@pytest.fixture(scope="module")
def pilots():
    return make_pilots()


@pytest.fixture(scope="module")
def held_out(pilots):
    return roll_out(pilots, TWO_LEVELS, Memory(3, 2), left_out(24, 4))


@pytest.fixture(scope="module")
def fitted(pilots):
    return roll_out(pilots, TWO_LEVELS, Memory(3, 2), everyone(24))


def solved(coefficients, levels, y0s):
    term = ml.MultilevelTerm(*[(cheap, middle, fine)[k] for k in levels])
    ts = jnp.asarray(coefficients.ts)

    def one(y0):
        return diffrax.diffeqsolve(
            term,
            ml.LinearMultistep(coefficients),
            ts[0],
            ts[-1],
            None,
            y0,
            stepsize_controller=diffrax.StepTo(ts),
        ).ys

    return jax.vmap(one)(y0s)


@pytest.mark.slow
def test_one_drift_of_a_linear_drift_has_the_exact_flow():
    # y' = -a y: one multiple b of the drift is exact, 1 - a b = exp(-a h).
    rate = 0.8
    term = ml.MultilevelTerm(lambda t, y, args: -rate * y, costs=[1.0])
    steps = ml.fit_steps(term, np.linspace(0, 2, 2001), jr.normal(jr.key(0), (8, 2)), key=jr.key(1), most=2)
    plan = steps.plan(budget=2)
    h = np.diff(plan.ts)
    np.testing.assert_allclose(plan.coefficients.drifts[0, 0], -np.expm1(-rate * h[0]) / rate, rtol=1e-4)
    assert plan.typical_error < 1e-5 and plan.fitted


def test_rollout_is_what_the_solver_does(pilots, fitted):
    coefficients = coefficients_of(fitted, TS)
    ends = solved(coefficients, TWO_LEVELS.levels, starts(24))
    expected = fitted.states[-1].y
    np.testing.assert_allclose(
        np.concatenate([ends["v"][:, 0], ends["x"][:, 0]], axis=1), expected, atol=2e-5
    )


@pytest.mark.slow
def test_rollout_with_noise_is_what_the_solver_does():
    y0s = jr.normal(jr.key(3), (12, 2))
    pilots = make_pilots(problem=Noisy(), y0s=y0s)
    rollout = roll_out(pilots, TWO_LEVELS, Memory(2, 2), everyone(12))
    ts = jnp.asarray(TS[list(PLACES)])
    solver = ml.LinearMultistep(coefficients_of(rollout, TS))

    def one(y0, key):
        terms = Noisy()(key)
        return diffrax.diffeqsolve(
            terms, solver, ts[0], ts[-1], None, y0, stepsize_controller=diffrax.StepTo(ts)
        ).ys[0]

    ends = jax.vmap(one)(y0s, jr.split(jr.key(7), 12))
    np.testing.assert_allclose(ends, rollout.states[-1].y, atol=2e-5)
    assert rollout.typical_error < 0.1


class Driven(eqx.Module):
    """x' = c exp(-t) + noise with a constant c of each pilot's own: a step is exact with one multiple of the drift."""

    def __call__(self, key):
        term = ml.MultilevelTerm(*[lambda t, y, args: jnp.stack([y[1] * jnp.exp(-t), 0 * y[1]])] * 3)
        path = ml.GridBrownianPath(TS, (2,), key=key)
        noise = diffrax.ControlTerm(lambda t, y, args: jnp.diag(jnp.array([0.5, 0.0])), path)
        return diffrax.MultiTerm(term, noise)


def test_the_noise_is_no_part_of_what_is_fitted():
    # Classical coefficients miss it (the drift falls by a third in a step), and so do those fitted to states in which
    # the noise, as large as the drift's own move, is left.
    pilots = make_pilots(problem=Driven(), y0s=jr.normal(jr.key(4), (6, 2)))
    alone = Schedule(PLACES, 2, ((),) * 6)
    assert roll_out(pilots, alone, Memory(1, 1), everyone(6)).errors.max() < 1e-4
    assert roll_out(pilots, alone, Memory(1, 1), everyone(6), classical=True).errors.max() > 1e-2


def test_cost_is_that_of_the_evaluations(fitted):
    coefficients = coefficients_of(fitted, TS)
    # Of the evaluations in steps 1, 3, 4 and 5 the first finds an exact state, and any may leave its state where it is.
    assert not coefficients.repeats[[0, 1, 5]].any()
    spared = 0.05 * (3 - coefficients.repeats.sum())
    assert TWO_LEVELS.cost(COSTS) == pytest.approx(float(coefficients.evaluations @ COSTS) + spared)


def test_fitted_errs_less_than_classical_on_fresh_states(fitted, pilots):
    fresh = make_pilots(48, seed=5)
    classical = roll_out(pilots, TWO_LEVELS, Memory(3, 2), everyone(24), classical=True)

    def error(rollout):
        ends = solved(coefficients_of(rollout, TS), TWO_LEVELS.levels, starts(48, 5))
        apart = np.concatenate([ends["v"][:, 0], ends["x"][:, 0]], axis=1) - fresh.path[-1]
        return np.sqrt(np.mean(apart**2, axis=1))

    with_fit, without = error(fitted), error(classical)
    # A paired z-test of the logarithms, at 3 standard errors.
    gain = np.log(without / with_fit)
    assert gain.mean() > 3 * gain.std() / 48**0.5


def test_held_out_errors_predict_those_of_fresh_states(held_out, fitted):
    fresh = make_pilots(64, seed=9)
    ends = solved(coefficients_of(fitted, TS), TWO_LEVELS.levels, starts(64, 9))
    apart = np.concatenate([ends["v"][:, 0], ends["x"][:, 0]], axis=1) - fresh.path[-1]
    measured, predicted = np.log(np.sqrt(np.mean(apart**2, axis=1))), np.log(held_out.errors)
    error = np.hypot(measured.std() / 8, predicted.std() / 24**0.5)
    assert abs(measured.mean() - predicted.mean()) < 4 * error


@pytest.mark.parametrize("repeats", [True, False])
def test_gradient_of_the_end_error_is_that_of_differences(repeats):
    few = make_pilots(8)
    rollout = roll_out(few, TWO_LEVELS._replace(repeats=repeats), Memory(3, 2), everyone(8))
    problem = _linearised(few, rollout, seed=0)
    direction = np.random.default_rng(0).normal(size=(1, problem.gradient.shape[1]))

    def halves(length):
        given = _changed(rollout, length * direction)
        return roll_out(few, rollout.schedule, Memory(3, 2), everyone(8), given=given).errors ** 2 / 2

    slope = (halves(2e-3) - halves(-2e-3)) / 4e-3
    # Central differences in single precision, of slopes of about 0.05.
    np.testing.assert_allclose(problem.gradient @ direction[0], slope, rtol=0.01, atol=1e-4)


def test_refined_errs_less_than_fitted_on_fresh_states(pilots, held_out):
    refined = refine(pilots, held_out, lambda what: None)
    assert refined.typical_error < held_out.typical_error
    fresh = make_pilots(48, seed=5)

    def error(rollout):
        ends = solved(coefficients_of(rollout, TS), TWO_LEVELS.levels, starts(48, 5))
        apart = np.concatenate([ends["v"][:, 0], ends["x"][:, 0]], axis=1) - fresh.path[-1]
        return np.sqrt(np.mean(apart**2, axis=1))

    # A paired z-test of the logarithms, at 3 standard errors.
    gain = np.log(error(held_out) / error(refined))
    assert gain.mean() > 3 * gain.std() / 48**0.5


def test_rollout_from_a_known_one_is_a_rollout_from_the_start(pilots, held_out):
    changed = TWO_LEVELS._replace(evaluated=(*TWO_LEVELS.evaluated[:4], (), (2,)))
    again = roll_out(pilots, changed, Memory(3, 2), left_out(24, 4), known=held_out)
    afresh = roll_out(pilots, changed, Memory(3, 2), left_out(24, 4))
    np.testing.assert_array_equal(again.errors, afresh.errors)
    assert again.fitted[3] is held_out.fitted[3] and again.fitted[4] is not held_out.fitted[4]


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(128, 32, [32] * 4), (40, 32, [40]), (3, 32, [3]), (100, 32, [33, 34, 33]), (48, 32, [24, 24])],
)
def test_batches_are_even(count, size, sizes):
    batches = _even_batches(count, size)
    assert [batch.stop - batch.start for batch in batches] == sizes
    assert [n for batch in batches for n in range(count)[batch]] == list(range(count))


def test_classical_rollout_is_adams_bashforth(pilots):
    alone = Schedule(PLACES, 2, ((),) * 6)
    rollout = roll_out(pilots, alone, Memory(4, 2), everyone(24), classical=True)
    expected = ml.MultistepCoefficients.adams_bashforth(TS[list(PLACES)], drifts=2)
    found = coefficients_of(rollout, TS)
    np.testing.assert_allclose(found.drifts[:, :2], expected.drifts, rtol=1e-12)
    assert np.all(found.drifts[:, 2:] == 0)


def test_where_a_fit_is_worse_on_held_out_pilots_the_classical_steps_are_taken(pilots, monkeypatch):
    def worse(pilots, rollout, report, kept):
        return rollout._replace(errors=1e3 * rollout.errors)

    monkeypatch.setattr("mlem_jax._calibration.fit_entries.refine", worse)
    alone = Schedule(PLACES, 2, ((),) * 6)
    rollout, better = _final(pilots, alone, None, KeptParts(), lambda what: None)
    found = coefficients_of(rollout, TS)
    expected = ml.MultistepCoefficients.adams_bashforth(TS[list(PLACES)], drifts=2)
    np.testing.assert_allclose(found.drifts[:, :2], expected.drifts, rtol=1e-12)
    assert not better


def reported_by_search(pilots, monkeypatch, several):
    """What the search for several levels reports if it finds schedules of these costs and errors for the finest level
    and none for the middle one. The finest level alone has the error 1 / cost."""
    search = importlib.import_module("mlem_jax._calibration.fit_search")

    def found(cost, error):
        return Found(TWO_LEVELS, error, cost, [])

    def multilevel(searcher, top, *rest):
        return [[found(*one)] for one in several] if top == 2 else []

    monkeypatch.setattr(search, "single_level", lambda *given: [found(c, 1 / c) for c in (2.0, 4.0, 8.0)])
    monkeypatch.setattr(search, "multilevel", multilevel)
    reported = []
    for _ in search.search_schedules(pilots, 8.0, KeptParts(), lambda count, text: reported.append(text)):
        pass
    return sum(text.startswith("several levels") for text in reported)


def test_the_search_ends_after_two_schedules_that_gain_little(pilots, monkeypatch):
    """A schedule with gain g has the error 1 / (g cost). A gain of 1.05 is too small; the second one in a row ends the
    search."""
    costs, gains = (2.0, 2.5, 3.0, 4.0, 5.0, 6.0), (2.0, 1.05, 1.5, 1.05, 1.05, 1.3)
    several = [(cost, 1 / (gain * cost)) for cost, gain in zip(costs, gains, strict=True)]
    assert reported_by_search(pilots, monkeypatch, several) == 5


def test_the_search_ends_after_two_schedules_with_the_same_error(pilots, monkeypatch):
    """The finest level alone does not reach these errors. The second schedule is better than the first."""
    several = [(1.0, 0.1), (2.0, 0.09), (3.0, 0.089), (4.0, 0.088), (5.0, 0.01)]
    assert reported_by_search(pilots, monkeypatch, several) == 4


def test_errors_say_what_to_write():
    term = ml.MultilevelTerm(lambda t, y, args: -y)
    ts, y0s = np.linspace(0, 1, 33), jnp.ones((8, 2))
    with as_user():
        with pytest.raises(ValueError, match="at least 8 initial states"):
            ml.fit_steps(term, ts, y0s[:4], key=jr.key(0))
        with pytest.raises(ValueError, match="strictly increasing or strictly decreasing"):
            ml.fit_steps(term, np.zeros(33), y0s, key=jr.key(0))
        with pytest.raises(ValueError, match="at least 2 evaluations"):
            ml.fit_steps(term, ts, y0s, key=jr.key(0), most=1)
        with pytest.raises(ValueError, match="not finite"):
            explosive = ml.MultilevelTerm(lambda t, y, args: 1e9 * y**3, costs=[1.0])
            ml.fit_steps(explosive, ts, y0s, key=jr.key(0), progress=False)
