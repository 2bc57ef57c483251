"""Calibrations with a catalogue of fitted steps: which kind of plan wins, files, and sampling with fitted plans."""

import dataclasses
import importlib
import sys

import diffrax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import catalogue, randomised, stand_in, TINY
from problems import as_user

import mlem_jax as ml
from mlem_jax._calibration.abstract_plan import AbstractPlan
from mlem_jax._calibration.planning import choose_plan
from mlem_jax.diffusion import calibrate_ladder, dpm_solver, Ladder, load_ladder, sample

TS = np.geomspace(80.0, 0.01, 7)
MIDPOINT = ml.SystematicCoins(offset=0.5)


ENTRIES = [((1,), (2,), 0.4), ((1,), (4,), 0.1), ((0, 1), (5, 2), 0.09)]


@pytest.fixture(scope="module")
def ladder():
    networks = tuple(randomised(n, seed=k) for k, n in enumerate(TINY.networks()))
    return Ladder(networks, TINY, {"name": "tiny"}, {})


@pytest.fixture(scope="module")
def calibration(ladder):
    found = stand_in(ladder)
    found = dataclasses.replace(found, measurements=dataclasses.replace(found.measurements, finest_error=0.3))
    return found.with_fitted(catalogue(found, ENTRIES))


def test_the_smaller_error_wins_within_a_budget(calibration):
    # Of plans with coins any has an error of about 1: that is what each level alone was measured to have.
    plan = calibration.plan(budget=3)
    assert isinstance(plan, ml.FittedPlan) and plan.levels == (0, 1) and plan.error == pytest.approx(0.09)
    assert plan.finest_error == 0.3 and plan.cost == pytest.approx(5 * 0.1 + 2)
    worse = [(levels, counts, 50.0) for levels, counts, _ in ENTRIES]
    other = calibration.with_fitted(catalogue(calibration, worse)).plan(budget=3)
    assert isinstance(other, ml.Plan) and other.error < 50
    # Too cheap for the catalogue.
    assert isinstance(calibration.plan(budget=1.5), ml.Plan)


def test_a_few_trajectories_do_not_decide_for_coins(calibration):
    # Of coins an RMS error of about 1 is predicted. Seven of eight pilots err half as much, one ends elsewhere.
    steps = catalogue(calibration, ENTRIES)
    errors = np.where(np.arange(8) < 7, 0.5, 30.0) * np.ones((3, 1))
    plan = calibration.with_fitted(dataclasses.replace(steps, errors=errors)).plan(budget=3)
    coins = calibration.plan(budget=3, coins=MIDPOINT)
    assert isinstance(plan, ml.FittedPlan) and plan.error > 10 * coins.error > 10 * plan.typical_error


def test_the_smaller_cost_wins_for_an_error(calibration):
    assert calibration.plan(error=0.095).levels == (0, 1)
    assert calibration.plan(error=0.1).cost == pytest.approx(2.5)
    # Coins reach an error of 40 with less than two evaluations of the finest level.
    lax = calibration.plan(error=40)
    assert isinstance(lax, ml.Plan) and lax.cost < 2
    with pytest.raises(ValueError, match="cannot be reached"):
        calibration.plan(error=1e-9)


def counted_plans(monkeypatch):
    """The calls of the search for plans with coins."""
    searched, module = [], importlib.import_module("mlem_jax._calibration.plan_choice")

    def counted(*given, **settings):
        searched.append(settings["budget"])
        return choose_plan(*given, **settings)

    monkeypatch.setattr(module, "choose_plan", counted)
    return searched


def test_one_plan_with_coins_shows_whether_coins_can_be_better(calibration, monkeypatch):
    """With coins an error of about 1 is predicted. Plans for smaller budgets are tried where fitted steps have nearly
    this error, and not where they have a tenth of it; for an error, the cheapest is searched for where coins reach it
    at the cost of the fitted steps."""
    searched = counted_plans(monkeypatch)
    assert isinstance(calibration.plan(budget=3), ml.FittedPlan)
    assert searched == [3]
    near = calibration.with_fitted(
        catalogue(calibration, [(*ENTRIES[0][:2], 0.99 * stand_in_plan(calibration).error)])
    )
    searched.clear()
    assert isinstance(near.plan(budget=3), ml.FittedPlan)
    assert len(searched) == 4 and min(searched) < 2.2
    searched.clear()
    assert isinstance(calibration.plan(error=0.095), ml.FittedPlan)
    assert len(searched) == 1
    calibration.plan(error=40)
    assert len(searched) == 3 and searched[-1] is None


def test_a_ladder_compares_all_its_methods_with_fitted_steps(ladder, calibration, monkeypatch):
    """Whichever calibration has the fitted steps. Of the others one plan shows that they are worse, or they win."""
    first = dataclasses.replace(calibration, fitted=None)
    ours = ladder.with_calibrations({"ode": first, "ode_2": calibration})
    searched = counted_plans(monkeypatch)
    assert isinstance(ours.plan(budget=3), ml.FittedPlan)
    assert searched == [3, 3]
    worse = calibration.with_fitted(
        catalogue(calibration, [(*ENTRIES[0][:2], 1.2 * stand_in_plan(calibration).error)])
    )
    found = ladder.with_calibrations({"ode": first, "ode_2": worse}).plan(budget=3)
    assert isinstance(found, ml.Plan)
    exact = {name: getattr(first.measurements, name) / 1e3 for name in ("effects", "single_error")}
    better = dataclasses.replace(first, measurements=dataclasses.replace(first.measurements, **exact))
    found = ladder.with_calibrations({"ode": better, "ode_2": calibration}).plan(budget=3)
    assert isinstance(found, ml.Plan) and found.error < 0.09


def test_who_names_coins_gets_them(calibration):
    for named in ({"coins": MIDPOINT}, {"levels": (0, 1)}, {"steps": 8}):
        assert isinstance(calibration.plan(budget=3, **named), ml.Plan)
    assert calibration.plan(budget=3, coins=MIDPOINT).cost == stand_in_plan(calibration).cost


def stand_in_plan(calibration):
    return dataclasses.replace(calibration, fitted=None).plan(budget=3)


def test_remarks_and_units_are_passed_on(calibration):
    remarked = dataclasses.replace(calibration, remarks=("The moon is full.",))
    assert remarked.plan(budget=3).advice == ("The moon is full.",)
    assert "wall-clock seconds of batches of 3" in str(remarked.plan(budget=3, in_seconds=True))


def test_steps_of_other_levels_are_refused(ladder, calibration):
    other = dataclasses.replace(calibration.fitted, levels_id=("a", "b"))
    with as_user(), pytest.raises(ValueError, match="other levels or another state"):
        calibration.with_fitted(other)
    with as_user(), pytest.raises(ValueError, match="number 2 differ"):
        swapped = (ladder.networks[0], randomised(ladder.networks[1], seed=9))
        plan = calibration.plan(budget=3)
        sample(dataclasses.replace(ladder, networks=swapped), n=1, plan=plan, key=jr.key(0), progress=False)


def test_files_keep_the_catalogue(calibration, tmp_path):
    calibration.save(tmp_path / "c.npz")
    again = ml.Calibration.load(tmp_path / "c.npz")
    assert str(again) == str(calibration) and "fitted steps for 2 levels" in str(again)
    plan = again.plan(budget=3)
    plan.save(tmp_path / "p.npz")
    loaded = AbstractPlan.load(tmp_path / "p.npz")
    assert isinstance(loaded, ml.FittedPlan) and str(loaded) == str(plan)
    np.testing.assert_array_equal(loaded.coefficients.drifts, plan.coefficients.drifts)
    without = dataclasses.replace(calibration, fitted=None)
    without.save(tmp_path / "w.npz")
    assert ml.Calibration.load(tmp_path / "w.npz").fitted is None


@pytest.mark.slow
def test_samples_of_a_fitted_plan_are_solves_with_its_steps(ladder, calibration):
    plan = calibration.plan(budget=3)
    assert plan.deterministic and plan.firing_pattern().sum(axis=0).tolist() == [5, 2]
    both = dataclasses.replace(ladder, calibrations={"ode": calibration})
    assert both.plan(budget=3).coefficients is plan.coefficients
    key = jr.key(3)
    found = sample(both, n=2, plan=plan, key=key, progress=False)
    start = 80.0 * jr.normal(jr.fold_in(jr.split(key, 3)[0], 1), TINY.shape)
    sol = diffrax.diffeqsolve(
        plan.terms(ladder.term()),
        ml.LinearMultistep(plan.coefficients),
        plan.grid[0],
        plan.grid[-1],
        None,
        start,
        stepsize_controller=diffrax.StepTo(plan.grid),
    )
    np.testing.assert_allclose(found.images[1], sol.ys[0], rtol=1e-4, atol=1e-4)
    with as_user(), pytest.raises(ValueError, match="results of earlier steps. Use a plan with coins"):
        sample(both, n=1, plan=plan, key=key, start_from=np.zeros(TINY.shape), start_at=1.0)


def test_dpm_solver_of_one_data_point_is_exact_and_else_is_the_papers_recursion():
    point = jnp.array([0.3, -0.7])

    def solve(clean):
        term = ml.MultilevelTerm(lambda s, y, args: (y - clean(s, y)) / s)
        ts = jnp.asarray(TS)
        sol = diffrax.diffeqsolve(
            term,
            ml.LinearMultistep(dpm_solver(TS)),
            ts[0],
            ts[-1],
            None,
            jnp.array([50.0, -20.0]),
            stepsize_controller=diffrax.StepTo(ts),
        )
        return np.asarray(sol.ys[0])

    # The exact flow is a straight line from the noise to the point.
    expected = point + TS[-1] / TS[0] * (jnp.array([50.0, -20.0]) - point)
    np.testing.assert_allclose(solve(lambda s, y: point), expected, atol=1e-5)

    def clean(s, y):
        return np.tanh(y / (1 + s)) + 0.1 * s / (1 + s)

    # Lu et al. (2022), equation of the second-order multistep version in lambda = -log s.
    y, past = np.array([50.0, -20.0]), None
    for n, (s, t) in enumerate(zip(TS, TS[1:], strict=False)):
        data = clean(s, y)
        h = np.log(s / t)
        if past is not None:
            ratio = np.log(TS[n - 1] / s) / h
            guess = (1 + 1 / (2 * ratio)) * data - past / (2 * ratio)
        else:
            guess = data
        y, past = t / s * y - np.expm1(-h) * guess, data
    np.testing.assert_allclose(
        solve(lambda s, y: jnp.tanh(y / (1 + s)) + 0.1 * s / (1 + s)), y, rtol=2e-4, atol=1e-4
    )
    with as_user(), pytest.raises(ValueError, match="decreasing positive"):
        dpm_solver(TS[::-1])


@pytest.mark.slow
def test_calibrate_fits_on_its_own_pilots_if_asked(monkeypatch):
    asked = []

    def pretend(terms, ts, y0s, args, **settings):
        asked.append((y0s, settings))
        measured = ml.Calibration(found.measurements, found.trials)
        return catalogue(measured, ENTRIES)

    monkeypatch.setattr(sys.modules["mlem_jax._calibration.calibrate"], "fit_steps", pretend)
    term = ml.MultilevelTerm(lambda t, y, args: -y, lambda t, y, args: -y - 0.1 * y**3, costs=(0.1, 1.0))
    y0s = jr.normal(jr.key(0), (8, 2))
    settings = {"key": jr.key(1), "trials": (), "progress": False}
    method = ml.AdamsBashforth("log")
    found = ml.calibrate(term, np.geomspace(1, 2, 9), y0s, method=method, **settings)
    assert found.fitted is None and not asked
    fitted = ml.calibrate(
        term, np.geomspace(1, 2, 9), y0s, method=method, costs=[1.0, 10.0], fit=True, **settings
    )
    ((pilots, passed),) = asked
    assert pilots is y0s and passed["time_variable"] == "log" and passed["costs"] == [1.0, 10.0]
    assert fitted.fitted.levels_id == found.measurements.levels_id


def test_ladders_of_images_are_fitted_for_their_distribution(monkeypatch):
    module = sys.modules["mlem_jax.diffusion._ladder.calibrate"]
    given = {}

    def fit(*arguments, **settings):
        given.update(settings)
        raise InterruptedError

    monkeypatch.setattr(module, "calibrate", lambda *arguments, **settings: stand_in(load_ladder()))
    monkeypatch.setattr(module, "fit_steps", fit)
    with pytest.raises(InterruptedError):
        calibrate_ladder(load_ladder(), pilots=2, fit_pilots=8, progress=False)
    assert given["distribution"] > 0.5 and given["time_variable"] == "log"
