"""Numbers that calibrations and plans report beside their errors, on measurements made by hand."""

import dataclasses

import numpy as np
import pytest
from test_planning import made

import mlem_jax as ml
from mlem_jax._calibration.linear_model import predict, select, Selection
from mlem_jax._calibration.pilots import root_mean
from mlem_jax._calibration.report import kurtosis, regression
from mlem_jax._calibration.single_level import speedups


def test_the_stated_spread_is_that_of_other_pilots():
    # 400 draws of 64 pilots whose errors are standard normal (seed 0): how much the root mean squares of the draws
    # differ is what each of them says of itself, within the 10% to which 400 draws and 64 pilots know it.
    errors = np.random.default_rng(0).normal(size=(400, 64))
    found = np.array([root_mean(draw**2) for draw in errors])
    assert np.mean(found[:, 1]) == pytest.approx(np.std(found[:, 0]) / np.mean(found[:, 0]), rel=0.1)
    # The same for errors that independent coins would make of such effects.
    table, predicted = np.tile([1.0, 0.5], (4, 1)), []
    for draw in errors[:100]:
        effects = np.stack([np.ones((4, 64)), np.tile(draw, (4, 1))], axis=1)
        model = select(made(effects, (0.1, 1.0)), Selection((0, 1), 1))
        predicted.append(predict(model, table, ml.IndependentCoins())[1:])
    size, spread = np.array(predicted).T
    assert np.mean(spread) == pytest.approx(np.std(size) / np.mean(size), rel=0.2)


@pytest.fixture
def first_order():
    """Two levels that both err one over the number of steps; the first costs a tenth."""
    measured = made(np.ones((100, 2, 3)), (0.1, 1.0))
    return dataclasses.replace(
        measured, single_steps=np.array([10, 100]), single_error=np.array([[0.1, 0.01]] * 2)
    )


def test_speedups_are_over_the_finest_and_over_the_best_level(first_order):
    # 20 steps err 0.05: at cost 20 on the finest level and 2 on the other, against a plan of cost 4.
    assert speedups(first_order, 0.05, 4.0) == pytest.approx((5.0, 0.5), rel=1e-2)


@pytest.mark.parametrize(("method", "error"), [(ml.EulerMaruyama(), 5e-4), (ml.AdamsBashforth(), 2.5e-4)])
def test_errors_fall_with_the_order_of_the_method_and_no_faster(first_order, method, error):
    steep = dataclasses.replace(first_order, method=method, single_error=np.array([[0.1, 1e-3]] * 2))
    assert steep.single_level_error(1, 200) == pytest.approx(error)
    assert steep.single_level_error(0, 200) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("method", "where"), [(ml.EulerMaruyama(), [0, 2, 4, 6]), (ml.AdamsBashforth(), [1, 3, 5, 7])]
)
def test_effects_are_those_where_a_method_applies_its_corrections(method, where):
    # At the start of a step, or in its middle: for steps of twice the measured length, two measured steps each.
    effects = np.tile(np.arange(8.0)[:, None, None], (1, 2, 3))
    measured = dataclasses.replace(made(effects, (0.1, 1.0)), method=method)
    model = select(measured, Selection((0, 1), 2))
    np.testing.assert_allclose(model.effects[:4, 1], np.tile(np.array(where)[:, None], (1, 3)))


@pytest.mark.parametrize(("own", "tried", "stated"), [(0.05, 0.2, 0.2), (0.3, 0.2, 0.3)])
def test_a_prediction_is_as_uncertain_as_the_worse_of_its_sources(own, tried, stated):
    trials = ml.Trials(
        coins=("StratifiedCoins",),
        budget=np.array([4.0]),
        predicted=np.array([0.1]),
        measured=np.array([0.1]),
        uncertainty=np.array([tried]),
    )
    assert trials.corrected("StratifiedCoins", 4.0, 0.1, own)[1] == pytest.approx(stated)


def test_a_level_without_any_effect_has_a_number_in_the_report():
    # The middle one of three equals the first. Effects of either sign and one size have kurtosis 1.
    signs = np.where(np.arange(6) % 2, 1.0, -1.0)
    effects = np.tile(np.array([1.0, 0.0, 0.5])[None, :, None], (8, 1, 6)) * signs
    measured = made(effects, (0.01, 0.1, 1.0))
    assert kurtosis(measured) == pytest.approx((1, 0, 1))
    assert "nan" not in str(ml.Calibration(measured, ml.Trials.none()))


def test_rates_of_a_hierarchy_by_powers_of_two():
    # Increments fall by 4 and costs grow by 8 a level: gamma = log 8 / log 4, beta = 2 log2 4, gamma_Giles = log2 8.
    sizes = np.array([16.0, 1.0, 1 / 4, 1 / 16, 1 / 64])
    effects = np.tile(sizes[None, :, None], (8, 1, 3))
    found = regression(made(effects, 8.0 ** np.arange(-4, 1)))
    assert (found.gamma, found.giles_beta, found.giles_gamma) == pytest.approx((1.5, 4.0, 3.0))
    assert found.levels == (2, 3, 4, 5) and found.standard_error == pytest.approx(0, abs=1e-6)
    # A level whose increment is no smaller than half of the cheapest level's mass takes no part.
    flat = np.tile(np.array([16.0, 15.0, 1 / 4, 1 / 16, 1 / 64])[None, :, None], (8, 1, 3))
    assert regression(made(flat, 8.0 ** np.arange(-4, 1))).levels == (3, 4, 5)
