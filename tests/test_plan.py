"""Plans: what they promise is what happens, and what does not pay is said."""

import dataclasses

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from plan_problems import COSTS, euler, linear_levels, solve, STEPS, TS, Y0S
from problems import as_user, POLICIES, remeasured

import mlem_jax as ml
from mlem_jax._calibration.linear_model import predict, select, Selection
from mlem_jax._calibration.report import kurtosis, memory, regression


@pytest.fixture(scope="module")
def term():
    return ml.MultilevelTerm(*linear_levels((0.03, 0.01)), costs=COSTS)


@pytest.fixture(scope="module")
def calibration(term):
    # The finest level's own derivative, so that nothing but the linearisation is approximate.
    return ml.calibrate(
        term, TS, Y0S, key=jr.key(5), probes=8, sensitivity_level=-1, trials=(), progress=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("budget", [4.0, 12.0])
def test_predicted_coin_error_and_cost_are_what_happens(term, calibration, name, budget):
    # 200 coin seeds from key 11 (1 for midpoint), on the pilots themselves: 8 directions each leave an
    # error of 1 / sqrt(2 * 32 * 8) = 4% in the prediction, the seeds about 5%; the tolerance is 20%.
    coins = POLICIES[name]
    plan = calibration.plan(budget=budget, coins=coins, steps=STEPS, levels=(0, 1, 2))
    end = euler(term, plan)

    def run(key):
        found, state = solve(term, plan, plan.solver(key=key))
        return jnp.mean((found - end) ** 2), state.evaluations[0]

    seeds = 1 if name == "midpoint" else 200
    squares, evaluations = jax.lax.map(jax.jit(run), jr.split(jr.key(11), seeds))
    measured = float(jnp.sqrt(jnp.mean(squares)))
    assert measured == pytest.approx(plan.coin_error, rel=0.2)
    cost = float(jnp.mean(evaluations, axis=0) @ jnp.asarray(plan.costs))
    assert cost == pytest.approx(plan.cost, rel=0.06)
    assert plan.cost <= budget


def test_probabilities_of_independent_coins_are_the_best(calibration):
    # Moving cost between levels, or between early and late times, must not lower the predicted error.
    plan = calibration.plan(budget=2.5, coins=ml.IndependentCoins(), steps=STEPS, levels=(0, 1, 2))
    model = select(calibration.measurements, Selection((0, 1, 2), 1))
    cost, error, _ = predict(model, plan.table, ml.IndependentCoins())
    early = (np.arange(STEPS) < STEPS // 2)[:, None]
    for change in (
        np.array([1.0, 1.6, 1.0]),
        np.array([1.0, 1 / 1.6, 1.0]),
        np.where(early, [1.0, 1.6, 1.6], 1.0),
        np.where(early, [1.0, 1 / 1.6, 1 / 1.6], 1.0),
    ):
        moved_cost, moved, _ = predict(model, np.minimum(1.0, plan.table * change), ml.IndependentCoins())
        # Error falls like the root of the cost beyond the cheapest level's.
        base = STEPS * calibration.costs[0]
        assert moved * ((moved_cost - base) / (cost - base)) ** 0.5 > 0.98 * error


def test_dropping_a_level_adds_its_increment_to_the_next(calibration):
    every = select(calibration.measurements, Selection((0, 1, 2), 1)).effects
    two = select(calibration.measurements, Selection((0, 2), 2))
    np.testing.assert_allclose(two.effects[: STEPS // 2, 2], every[::2, 1:].sum(1))
    assert (
        two.steps == STEPS // 2 and np.all(two.effects[STEPS // 2 :] == 0) and np.all(two.effects[:, 0] == 0)
    )


@pytest.mark.slow
def test_a_useless_level_is_left_out_and_named():
    # The second level costs a third of the finest and is no better than the first.
    first, finest = linear_levels((0.03,))
    middle = lambda t, y, args: first(t, y, args) * 1.0001  # noqa: E731
    term = ml.MultilevelTerm(first, middle, finest, costs=(1, 30, 100))
    found = ml.calibrate(term, TS, Y0S, key=jr.key(0), trials=(), progress=False)
    assert "Level 2 costs more than it corrects" in str(found)
    plan = found.plan(budget=8.0)
    assert plan.levels == (0, 2)
    assert "Level 2 is left out" in str(plan)


@pytest.mark.slow
def test_where_the_finest_level_alone_is_best_the_plan_is_euler():
    # The cheap level costs almost as much as the finest and is far off.
    term = ml.MultilevelTerm(*linear_levels((3.0,)), costs=(1, 1.5))
    found = ml.calibrate(term, TS, Y0S, key=jr.key(0), trials=(), progress=False)
    plan = found.plan(budget=16.0)
    assert plan.levels == (1,) and isinstance(plan.solver(key=jr.key(0)), diffrax.Euler)
    assert "Use level 2 alone" in str(plan) and "close together" in str(found)
    end, _ = solve(term, plan, plan.solver(key=jr.key(0)))
    exact = jax.vmap(
        lambda y: diffrax.diffeqsolve(plan.terms(term), diffrax.Dopri5(), 0.0, 2.0, 0.01, y).ys[0]
    )(Y0S)
    assert float(jnp.sqrt(jnp.mean((end - exact) ** 2))) == pytest.approx(plan.error, rel=0.25)


@pytest.mark.slow
def test_gamma_below_two_is_measured_and_said():
    # |D_k| falls by 4 for each factor of 6 in cost: gamma = log 6 / log 4 = 1.29, well below 2.
    term = ml.MultilevelTerm(*linear_levels((0.4, 0.1, 0.025)), costs=(1, 6, 36, 216))
    found = ml.calibrate(term, TS, Y0S, key=jr.key(0), probes=8, trials=(), progress=False)
    fit = regression(found.measurements)
    assert fit.gamma == pytest.approx(np.log(6) / np.log(4), rel=0.15)
    assert fit.gamma == pytest.approx(2 * fit.giles_gamma / fit.giles_beta, rel=0.02)
    assert "independent coins do not reduce the cost" in str(found)
    # So one level alone is the better plan, though coupled coins gain.
    alone = found.plan(budget=4.0, coins=ml.IndependentCoins())
    assert len(alone.levels) == 1 and "MLEM does not pay here" in str(alone)
    assert found.plan(budget=4.0).speedup_over_single > 1.5


@pytest.mark.slow
def test_report_measures_kurtosis_and_memory():
    # Effects of the second level are 1 for one pilot of 400 and 0 otherwise: kurtosis 400. The third level's
    # alternate in time: they forget at once.
    steps, pilots = 8, 400
    effects = np.ones((steps, 3, pilots, 1), np.float32)
    effects[:, 1] = 0
    effects[:, 1, 0] = 1
    effects[:, 2] *= (-1.0) ** np.arange(steps)[:, None, None]
    base = ml.calibrate(
        ml.MultilevelTerm(*linear_levels((0.1, 0.03)), costs=COSTS),
        TS[:9],
        Y0S[:2],
        key=jr.key(0),
        trials=(),
    )
    found = remeasured(base, effects=effects)
    np.testing.assert_allclose(kurtosis(found.measurements), [1, 400, 1])
    assert memory(found.measurements).tolist() == [8, 8, 1]
    assert "kurtosis 400 > 100" in str(found)


@pytest.mark.slow
def test_target_error_is_met_at_no_more_cost_than_needed(calibration):
    generous = calibration.plan(budget=12.0)
    plan = calibration.plan(error=generous.error)
    assert plan.error <= generous.error and plan.cost <= 1.05 * generous.cost
    with pytest.raises(ValueError, match="cannot be reached"):
        calibration.plan(error=1e-9)


def test_plan_file_round_trip(calibration, tmp_path):
    for coins in (ml.SystematicCoins(offset=0.5), ml.SystematicCoins(), ml.StratifiedCoins()):
        plan = calibration.plan(budget=8.0, coins=coins)
        plan.save(tmp_path / "plan.npz")
        again = ml.Plan.load(tmp_path / "plan.npz")
        np.testing.assert_array_equal(again.table, plan.table)
        assert str(again) == str(plan)
    np.savez(tmp_path / "other.npz", x=np.ones(2))
    with pytest.raises(ValueError, match="not a plan"):
        ml.Plan.load(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(), "one of them; got None and None"),
        (dict(budget=1.0, error=1.0), "one of them"),
        (dict(budget=-1.0), "budget=-1.0; a positive number is expected"),
        (dict(budget=8.0, coins="midpoint"), "an object is expected"),
        (dict(budget=8.0, steps=7), "must divide the calibration's 32 steps"),
        (dict(budget=8.0, levels=(0, 1)), "the last 2"),
        (dict(budget=1e-3), "Give a larger budget"),
        (
            dict(budget=1e-1, steps=32, levels=(0, 1, 2)),
            "too small: 32 steps of the cheapest level cost 0.889",
        ),
    ],
)
def test_bad_input_of_plans(calibration, settings, message):
    with as_user(), pytest.raises(ValueError, match=message):
        ml.make_plan(calibration, **settings)


@pytest.mark.slow
def test_trial_runs_correct_the_linear_prediction():
    # A cubic drift whose increments do not simply add up: the trials see it.
    cheap = lambda t, y, args: -0.6 * y**3  # noqa: E731
    fine = lambda t, y, args: -(y**3)  # noqa: E731
    found = ml.calibrate(
        ml.MultilevelTerm(cheap, fine, costs=(1, 50)), TS, 1.5 + 0.1 * Y0S, key=jr.key(0), progress=False
    )
    assert set(found.trials.coins) == {
        "IndependentCoins",
        "StratifiedCoins",
        "SystematicCoins",
        "SystematicCoins(0.5)",
    }
    assert np.all(found.trials.measured > 0) and np.all(found.trials.uncertainty > 0)
    plan = found.plan(budget=5.0, steps=STEPS, levels=(0, 1))
    untried = dataclasses.replace(found, trials=ml.Trials.none())
    linear = untried.plan(budget=5.0, steps=STEPS, levels=(0, 1))
    assert plan.coin_error == pytest.approx(plan.nonlinearity * linear.coin_error, rel=1e-6)
    assert "were not tried" in str(linear)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["independent", "nested", "midpoint"])
def test_cost_of_a_plan_with_fewer_steps(term, calibration, name):
    # 64 coin seeds from key 3; the cost spreads by about 15% over seeds, so its mean by 2%.
    plan = calibration.plan(budget=3.0, coins=POLICIES[name], steps=STEPS // 4, levels=(0, 1, 2))
    seeds = 1 if name == "midpoint" else 64
    counts = [
        solve(term, plan, plan.solver(key=key), Y0S[:1])[1].evaluations[0]
        for key in jr.split(jr.key(3), seeds)
    ]
    assert float(np.mean(counts, axis=0) @ plan.costs) == pytest.approx(plan.cost, rel=0.08)


def test_a_small_budget_is_spent_on_fewer_steps(calibration):
    # 32 steps of the cheapest level alone cost 0.89.
    plan = calibration.plan(budget=0.7, levels=(0, 1, 2))
    assert len(plan.ts) - 1 == STEPS // 2
    assert "evaluated only" in str(plan) and "evaluated only" not in str(calibration.plan(budget=12.0))


def test_plans_in_seconds_weigh_levels_by_the_clock(calibration):
    # By the clock the two cheap levels take a third and a half of the finest one's time: hardly worth running.
    timed = remeasured(calibration, seconds=np.array([2e-3, 3e-3, 6e-3]))
    plan = timed.plan(budget=12.0, levels=(0, 1, 2), in_seconds=True)
    np.testing.assert_allclose(plan.costs, [1 / 3, 1 / 2, 1])
    by_flops = timed.plan(budget=12.0, levels=(0, 1, 2))
    np.testing.assert_allclose(by_flops.costs, np.array(COSTS) / COSTS[-1])
    looks, more_looks = (p.table[:, -1].sum() for p in (plan, by_flops))
    assert looks < 0.8 * more_looks and plan.cost <= 12
    assert f"wall-clock seconds of batches of {timed.measurements.batch}" in str(plan) and "clock" not in str(
        by_flops
    )


def test_one_level_alone_keeps_the_number_of_steps_asked_for(calibration):
    found = remeasured(calibration, single_error=calibration.measurements.single_error / 1e3)
    assert calibration.plan(budget=20.0).levels != (2,)
    plan = found.plan(budget=20.0, steps=16)
    assert plan.levels == (2,) and len(plan.ts) == 17
    assert "±" in str(plan) and "± 0%" not in str(plan)


def test_single_level_curves_are_not_carried_beyond_what_they_can_say(calibration):
    measured = calibration.measurements
    steps = measured.single_steps
    np.testing.assert_allclose(measured.single_level_error(0, steps), measured.single_error[0], rtol=1e-6)
    assert np.isinf(measured.single_level_error(2, steps[0] - 1))
    assert measured.single_level_error(0, 10 * steps[-1]) == pytest.approx(measured.single_error[0, -1])
    first_order = measured.single_error[2, -1] / 10
    assert measured.single_level_error(2, 10 * steps[-1]) == pytest.approx(first_order, rel=0.3)
    # An explosion with few steps says nothing about more.
    curve = np.array([[np.inf, 0.2, 0.3]] * 3)
    exploded = remeasured(calibration, single_error=curve)
    assert exploded.measurements.single_level_error(0, steps[1]) == pytest.approx(0.2)
    plan = exploded.plan(budget=1e-3 + steps[1] * calibration.costs[0])
    assert plan.levels == (0,) and len(plan.ts) - 1 == steps[1] and plan.error == pytest.approx(0.2)
