"""Calibrations and plans of second order: what they predict, with which clock, and that files keep it."""

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import as_user

import mlem_jax as ml

TS = np.geomspace(20.0, 0.02, 129)
# Each component's increment changes sign at its own times, so that its error is no multiple of the steps' own.
PHASES = np.linspace(0, 2 * np.pi, 16, endpoint=False)


def narrow(s, y, args):
    return s * y / (s**2 + 1 + 0.5 * jnp.sin(4 * jnp.log(s) + PHASES))


def wide(s, y, args):
    return s * y / (s**2 + 1)


@pytest.fixture(scope="module")
def calibrations():
    with jax.enable_x64(True):
        term = ml.MultilevelTerm(narrow, wide, costs=(0.02, 1.0))
        y0s = 20 * jr.normal(jr.key(0), (24, 16))
        return {
            clock: ml.calibrate(term, TS, y0s, key=jr.key(1), method=ml.AdamsBashforth(clock), progress=False)
            for clock in ("time", "log")
        }


def ends(plan, y0s):
    term = ml.MultilevelTerm(narrow, wide)
    solver = plan.solver(key=jr.key(0))

    @jax.vmap
    def solve(y0):
        return diffrax.diffeqsolve(
            plan.terms(term),
            solver,
            plan.ts[0],
            plan.ts[-1],
            None,
            y0,
            stepsize_controller=diffrax.StepTo(plan.grid),
        ).ys[0]

    return solve(y0s)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [6, 12, 20])
@pytest.mark.parametrize("clock", ["time", "log"])
def test_predicted_errors_are_measured_on_fresh_states(x64, calibrations, clock, budget):
    # 512 fresh states; the root mean square over them is known to two per cent. The prediction adds the steps' and the
    # coins' errors as far as they had the same signs in the trials next to this budget, so it may be pessimistic.
    plan = calibrations[clock].plan(budget=budget)
    assert plan.method == ml.AdamsBashforth(clock) and len(plan.levels) == 2
    solver = plan.solver(key=jr.key(0))
    assert isinstance(solver, ml.MLAB2) and solver.time_variable == clock
    y0s = 20 * jr.normal(jr.key(2), (512, 16))
    exact = y0s * np.sqrt((TS[-1] ** 2 + 1) / (TS[0] ** 2 + 1))
    error = float(jnp.sqrt(jnp.mean((ends(plan, y0s) - exact) ** 2)))
    assert -0.45 < error / plan.error - 1 < 0.4, (error, plan.error)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [6, 12, 20])
@pytest.mark.parametrize("clock", ["time", "log"])
def test_windows_of_midpoint_coins_tile_the_solve(calibrations, clock, budget):
    # The last look's window then ends with the solve, and no part of a correction is left undone.
    plan = calibrations[clock].plan(budget=budget)
    looks = np.sum(plan.table[:, -1])
    assert looks > 4 and abs(looks - round(looks)) < 1e-6, looks


@pytest.mark.slow
@pytest.mark.parametrize("clock", ["time", "log"])
def test_coins_are_tried_in_steps_enough_for_their_budget(calibrations, clock):
    # Plans with the log clock want few steps, fewer than evaluations at the largest of the budgets. Without a trial
    # there, predictions for large budgets would carry on with what was measured for small ones.
    calibration = calibrations[clock]
    midpoint = [name == "SystematicCoins(0.5)" for name in calibration.trials.coins]
    assert calibration.trials.budget[midpoint].tolist() == [2, 4, 10, 25]


@pytest.mark.slow
def test_the_linear_model_knows_where_corrections_act(calibrations):
    # For coins that were not tried nothing corrects the linear prediction. With kicks at the start of steps, where
    # MLEM has them, those of the trial with most steps would be a fifth too large.
    for calibration in calibrations.values():
        midpoint = np.array([name == "SystematicCoins(0.5)" for name in calibration.trials.coins])
        linear, measured = (
            calibration.trials.predicted[midpoint][-1],
            calibration.trials.measured[midpoint][-1],
        )
        assert abs(linear / measured - 1) < 0.1, (linear, measured)


@pytest.mark.slow
def test_the_clock_of_the_logarithm_is_measured_to_be_better(calibrations):
    finest = {clock: c.measurements.single_error[-1] for clock, c in calibrations.items()}
    assert np.all(finest["log"] < 0.7 * finest["time"])


@pytest.mark.slow
def test_files_keep_the_method(calibrations, tmp_path):
    calibration = calibrations["log"]
    calibration.save(tmp_path / "c.npz")
    again = ml.Calibration.load(tmp_path / "c.npz")
    assert again.method == ml.AdamsBashforth("log")
    calibration.plan(budget=12).save(tmp_path / "p.npz")
    plan = ml.Plan.load(tmp_path / "p.npz")
    calibration_text = str(again)
    assert plan.method == ml.AdamsBashforth("log")
    assert "errors of AB2 on the finest level" in calibration_text and "MLAB2" in str(plan)


def test_methods_that_do_not_exist_are_refused():
    term = ml.MultilevelTerm(narrow, wide)
    for method in (2, "MLAB2", ml.AdamsBashforth):
        with (
            as_user(),
            pytest.raises(ValueError, match=r"method=.*an object is expected, mlem_jax.EulerMaruyama"),
        ):
            ml.calibrate(term, TS, jnp.ones((4, 3)), key=jr.key(0), method=method)
