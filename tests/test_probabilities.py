"""Probabilities as functions of time and step: closed forms, what a solve makes of them (true time in
backward solves, costs under refinement), and what each kind refuses."""

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import as_user, decay, POLICIES, solve

import mlem_jax as ml

KEY = jr.key(0)
TERM = ml.MultilevelTerm(decay(1.0), decay(1.1))
MIDPOINT = POLICIES["midpoint"]


def evaluation_times(probabilities, t0, t1, **settings):
    solver = ml.MLEM(probabilities, coins=MIDPOINT, key=KEY, record=512)
    solution = solve(TERM, solver, jnp.ones(2), t0=t0, t1=t1, **settings)
    return ml.evaluation_report(solution.solver_state).evaluation_times[1]


def test_constant_is_the_same_at_all_times_and_steps():
    p = ml.ConstantProbabilities([1, 0.25])
    for t, h in [(0.0, 0.1), (3.0, 1e-3)]:
        np.testing.assert_array_equal(p(t, h), np.array([1, 0.25], np.float32))


@pytest.mark.parametrize("gamma", [0.7, 2.0, 2.5, 4.0])
def test_power_law_is_the_papers_formula(gamma):
    # Costs 2^{gamma k}, k = 1..6, and min(1, C 2^{-(1 + gamma/2) k}) with C = scale 2^{1 + gamma/2}.
    k = np.arange(1, 7)
    for scale in (0.3, 1.0, 7.0):
        p = ml.PowerLaw(2.0 ** (gamma * k), scale=scale, gamma=gamma)(0.0, 0.1)
        expected = np.minimum(1, scale * 2 ** (1 + gamma / 2) * 2.0 ** (-(1 + gamma / 2) * k))
        np.testing.assert_allclose(p, expected, rtol=1e-5)


def test_power_law_depends_on_cost_ratios_alone_and_takes_flops():
    # 5e12 does not fit JAX's 32-bit integers.
    flops = ml.PowerLaw([10**12, 5 * 10**12, 25 * 10**12], scale=0.5)(0.0, 0.1)
    np.testing.assert_allclose(flops, ml.PowerLaw([1, 5, 25], scale=0.5)(0.0, 0.1), rtol=1e-5)


@pytest.mark.parametrize("order", [1, -1], ids=["increasing", "decreasing"])
def test_table_is_linear_between_its_times_and_constant_outside(order):
    ts, values = np.array([0.0, 1.0, 3.0]), np.array([[1.0, 0.1], [1.0, 0.5], [0.4, 0.3]])
    table = ml.TabulatedProbabilities(ts[::order], values[::order])
    at = {-1.0: [1, 0.1], 0.0: [1, 0.1], 0.25: [1, 0.2], 1.0: [1, 0.5], 2.0: [0.7, 0.4], 9.0: [0.4, 0.3]}
    for t, expected in at.items():
        np.testing.assert_allclose(table(t, 0.1), expected, rtol=1e-6)


def test_rates_are_times_the_step_and_at_most_one():
    np.testing.assert_allclose(ml.Rates([40.0, 3.0])(0.0, 0.1), [1.0, 0.3], rtol=1e-6)
    np.testing.assert_allclose(ml.Rates(lambda t: [40.0, t])(5.0, 0.1), [1.0, 0.5], rtol=1e-6)
    table = ml.TabulatedProbabilities([0.0, 1.0], [[100.0, 2.0], [100.0, 4.0]])
    np.testing.assert_allclose(ml.Rates(table)(0.5, 0.1), [1.0, 0.3], rtol=1e-6)


def only_late(t):
    """Probability 1/2 for t > 1/2 and next to nothing before."""
    return jnp.stack([jnp.ones_like(t), jnp.where(t > 0.5, 0.5, 1e-6)])


LATE_TABLE = ml.TabulatedProbabilities([0.0, 0.5, 0.501, 1.0], [[1, 1e-6], [1, 1e-6], [1, 0.5], [1, 0.5]])


@pytest.mark.slow
@pytest.mark.parametrize("probabilities", [only_late, LATE_TABLE], ids=["callable", "table"])
def test_probabilities_are_functions_of_the_true_time_in_backward_solves(probabilities):
    # 64 steps; where a step starts later than 1/2 it has p = 1/2, and every second one fires. Going forward
    # the first of them does, because the clock stands at 33e-6 and the middle of its window is just inside.
    forward = evaluation_times(probabilities, 0.0, 1.0, steps=64)
    backward = evaluation_times(probabilities, 1.0, 0.0, steps=64)
    np.testing.assert_allclose(forward, 0.515625 + np.arange(16) / 32)
    np.testing.assert_allclose(backward, 0.984375 - np.arange(16) / 32)


def test_cost_of_rates_does_not_grow_when_the_step_shrinks():
    # Rate 12.5 on [0, 2]: 25 windows of length 0.08, one firing in the middle of each.
    rates = ml.Rates([jnp.inf, 12.5])
    middles = 0.04 + 0.08 * np.arange(25)
    for steps in (100, 400):
        times = evaluation_times(rates, 0.0, 2.0, steps=steps)
        assert len(times) == 25
        assert np.all((times <= middles + 1e-5) & (middles < times + 2.0 / steps + 1e-5))


def test_cost_of_rates_on_unequal_steps_is_rate_times_time():
    # 300 steps that grow 30-fold from the first to the last; 20 windows of length 1/10.
    ts = 2 * np.geomspace(1, 31, 301)
    ts = jnp.asarray(2 * (ts - ts[0]) / (ts[-1] - ts[0]))
    times = evaluation_times(
        ml.Rates([jnp.inf, 10.0]),
        0.0,
        2.0,
        stepsize_controller=diffrax.StepTo(ts),
    )
    assert len(times) == 20
    following = np.asarray(ts)[np.searchsorted(ts, times, side="right")]
    middles = 0.05 + 0.1 * np.arange(20)
    assert np.all((times <= middles + 1e-5) & (middles < following + 1e-5))


def test_lists_of_traced_numbers_are_probabilities():
    traced = jax.jit(lambda p: ml.ConstantProbabilities([1.0, p])(0.0, 0.1))(0.25)
    np.testing.assert_array_equal(traced, np.array([1, 0.25], np.float32))


BAD = {
    "above one": (lambda: ml.ConstantProbabilities([1.0, 1.5]), r"in \(0, 1\].*1\.5.*mlem_jax\.Rates"),
    "negative": (lambda: ml.ConstantProbabilities([1.0, -0.5]), r"in \(0, 1\].*-0\.5"),
    "nan": (lambda: ml.ConstantProbabilities([1.0, np.nan]), r"in \(0, 1\].*nan"),
    "zero": (lambda: ml.ConstantProbabilities([1.0, 0.0]), "zero.*never evaluated.*Leave the level out"),
    "scalar": (lambda: ml.ConstantProbabilities(0.5), r"one entry per level.*shape \(\)"),
    "matrix": (lambda: ml.ConstantProbabilities([[1.0, 0.5]]), r"one entry per level.*shape \(1, 2\)"),
    "empty": (lambda: ml.ConstantProbabilities([]), r"one entry per level.*shape \(0,\)"),
    "nothing": (lambda: ml.ConstantProbabilities(None), "given None.*cheapest level first"),
    "words": (lambda: ml.ConstantProbabilities("0.5"), "given '0.5'.*cheapest level first"),
    "power law, cost zero": (lambda: ml.PowerLaw([0.0, 1.0]), "PowerLaw costs has a zero"),
    "power law, negative cost": (lambda: ml.PowerLaw([-1.0, 1.0]), "PowerLaw costs must be positive"),
    "power law, one number": (lambda: ml.PowerLaw(5.0), "one cost per level.*given 5.0"),
    "power law, unordered": (lambda: ml.PowerLaw([5.0, 1.0]), r"cheapest first.*\[5.0, 1.0\]"),
    "power law, scale": (lambda: ml.PowerLaw([1.0, 5.0], scale=-1.0), "PowerLaw scale must be positive"),
    "power law, gamma": (lambda: ml.PowerLaw([1.0, 5.0], gamma=0.0), "PowerLaw gamma has a zero"),
    "table, shapes": (
        lambda: ml.TabulatedProbabilities([0.0, 1.0], [1.0, 0.5]),
        r"ts of shape \(N,\) and values of shape \(N, K\).*\(2,\) and \(2,\)",
    ),
    "table, lengths": (
        lambda: ml.TabulatedProbabilities([0.0, 1.0, 2.0], [[1.0, 0.5]]),
        r"\(3,\) and \(1, 2\)",
    ),
    "table, times": (
        lambda: ml.TabulatedProbabilities([0.0, 2.0, 1.0], [[1.0, 0.5]] * 3),
        r"strictly increasing or strictly decreasing.*\[0. 2. 1.\]",
    ),
    "table, repeated time": (
        lambda: ml.TabulatedProbabilities([0.0, 0.0], [[1.0, 0.5]] * 2),
        "strictly increasing or strictly decreasing",
    ),
    "table, zero": (lambda: ml.TabulatedProbabilities([0.0, 1.0], [[1, 0], [1, 1]]), "values has a zero"),
    "table, above one": (
        lambda: ml.MLEM(ml.TabulatedProbabilities([0.0, 1.0], [[1, 3], [1, 1]]), key=KEY),
        r"values must be in \(0, 1\].*mlem_jax\.Rates",
    ),
    "rates, negative": (lambda: ml.Rates([10.0, -1.0]), "rates must be positive.*-1"),
    "rates, zero": (lambda: ml.Rates([10.0, 0.0]), "rates has a zero"),
    "rates of a power law": (lambda: ml.Rates(ml.PowerLaw([1.0, 5.0])), "given a PowerLaw.*never above 1"),
    "rates of rates": (lambda: ml.Rates(ml.Rates([5.0, 1.0])), "given a Rates.*Write the rates themselves"),
}


@pytest.mark.parametrize("make, message", BAD.values(), ids=BAD.keys())
def test_bad_values_are_refused_with_what_to_write(make, message):
    with as_user(), pytest.raises(ValueError, match="(?s)" + message):
        make()


@pytest.mark.parametrize("value", [1.5, 0.0, -0.5, np.nan])
def test_a_callables_values_are_checked_while_it_runs(value):
    with pytest.raises(RuntimeError, match=r"not all in \(0, 1\]. Use mlem_jax.Rates"):
        evaluation_times(lambda t: jnp.array([1.0, value]), 0.0, 1.0, steps=4)


def test_a_table_of_constants_may_be_made_inside_jit():
    def middle(t):
        return ml.TabulatedProbabilities(np.array([0.0, 1.0]), np.array([[1.0, 0.2], [1.0, 0.6]]))(t, 0.1)

    assert np.allclose(jax.jit(middle)(0.5), [1.0, 0.4])
