"""Planning on measurements made by hand, whose right answers are known numbers."""

import dataclasses
import json

import diffrax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import as_user

import mlem_jax as ml
from mlem_jax._calibration.allocation import probabilities_at_cost
from mlem_jax._calibration.candidates import best_candidate, Search
from mlem_jax._calibration.linear_model import expected_cost, select, Selection
from mlem_jax._calibration.planning import choose_plan, UnreachableError
from mlem_jax._calibration.report import alone_ratio
from mlem_jax._calibration.single_runs import _reference

MIDPOINT = ml.SystematicCoins(offset=0.5)


def made(effects, costs, *, method=None, step_error=1e-3):
    """Measurements with these effects `(N, K, P)` on `[0, 1]`, in which every level alone errs 1 but the finest."""
    steps, num_levels, _ = effects.shape
    counts = np.array([steps // 2, steps])
    errors = np.ones((num_levels, 2))
    errors[-1] = step_error * np.array([2.0, 1.0])
    return ml.Measurements(
        ts=np.linspace(0.0, 1.0, steps + 1),
        increment_rms=np.sqrt(np.mean(effects**2, axis=2)),
        effects=effects[..., None].astype(np.float32),
        costs=np.asarray(costs, float),
        seconds=np.asarray(costs, float),
        single_steps=counts,
        single_error=errors,
        single_uncertainty=np.zeros_like(errors),
        batch=1,
        device="none",
        levels_id=tuple("abcd"[:num_levels]),
        state_id="none",
        method=ml.EulerMaruyama() if method is None else method,
    )


def random_effects(seed, steps=16, num_levels=3, pilots=8):
    """Effects that change over time at another rate for each level."""
    rng = np.random.default_rng(seed)
    t = np.arange(steps)[:, None, None] / steps
    phase, size = rng.uniform(0, 2 * np.pi, (2, 1, num_levels, pilots))
    rate = 2 * np.pi * np.arange(1, num_levels + 1)[None, :, None]
    return 0.3 * size ** np.arange(num_levels)[None, :, None] * np.sin(rate * t + phase)


@pytest.mark.parametrize(("method", "cost"), [(ml.EulerMaruyama(), 2.8), (ml.AdamsBashforth(), 3.0)])
def test_the_second_order_method_runs_its_base_again_at_a_look(method, cost):
    # 8 steps of a base that costs a tenth; with p = 1/4 the midpoint pattern has two looks. Each costs 1, and for
    # MLAB2 another tenth.
    model = select(made(np.ones((8, 2, 3)), (0.1, 1.0), method=method), Selection((0, 1), 1))
    table = np.tile([1.0, 0.25], (8, 1))
    assert expected_cost(model, table, MIDPOINT) == pytest.approx(cost)


def test_a_look_is_priced_with_the_level_below_it():
    # Independent coins, constant effects of one size. Of all pairs (p2, p3) of the same cost, enumerated here, those
    # found leave the least variance 1/p2 + 1/p3. A look at level 3 also evaluates level 2; with each level's own cost
    # as its price p2 / p3 would be 1.41, a fifth less.
    costs, budget = (0.01, 0.5, 1.0), 2.0
    model = select(made(np.ones((16, 3, 4)), costs), Selection((0, 1, 2), 1))
    table = probabilities_at_cost(model, ml.IndependentCoins(), budget, np.ones(3), 1)
    p2, p3 = np.meshgrid(np.geomspace(1e-3, 1, 2000), np.geomspace(1e-3, 1, 2000))
    cost = 16 * (0.01 * (1 - 0 * p2) + 0.5 * (p2 + p3 - p2 * p3) + 1.0 * p3)
    inside = np.abs(cost / budget - 1) < 2e-3
    best = np.argmin(np.where(inside, 1 / p2 + 1 / p3, np.inf))
    np.testing.assert_allclose(table[:, 1] / table[:, 2], (p2 / p3).flat[best], rtol=0.05)
    assert expected_cost(model, table, ml.IndependentCoins()) == pytest.approx(budget, rel=0.01)


def test_a_level_that_does_not_change_needs_few_looks():
    # Level 2's effect changes sign every other step, level 3's never, and both have one size. By size alone level 3
    # would get sqrt(0.5 / 1.5) = 0.58 of level 2's looks. Evenly spaced looks at a constant lose nothing, so that its
    # share is cut; the error is halved, from 0.5.
    effects = np.ones((32, 3, 2))
    effects[:, 1] = np.repeat([1.0, -1.0] * 8, 2)[:, None]
    measured = made(effects, (0.01, 0.5, 1.0))
    best = best_candidate(Search(measured, ml.Trials.none(), ml.SystematicCoins(), 32, (0, 1, 2)), 6.0)
    looks = best.table.sum(0)
    assert looks[2] / looks[1] < 0.5 and best.error < 0.3, (looks, best.error)


@pytest.mark.parametrize("seed", [1, 3, 5])
def test_a_pattern_is_not_chosen_for_its_positions_alone(seed):
    # With positions alone the choice for seed 3 and budget 2.5 has 6.5 times the error of the best one with random
    # positions: it rests on where the pattern happens to fall on a few pilots.
    measured = made(random_effects(seed), (0.01, 0.1, 1.0), step_error=0.02)
    for budget in (1.5, 2.5, 4.0):
        search = Search(measured, ml.Trials.none(), MIDPOINT, None, None)
        fixed = best_candidate(search, budget)
        random = search._replace(coins=ml.SystematicCoins())
        stride, levels = fixed.selection.stride, fixed.selection.levels
        same = best_candidate(random._replace(steps=measured.num_steps // stride, levels=levels), budget)
        assert same.error <= 1.5 * best_candidate(random, budget).error
        # Otherwise it would be half a firing, which never happens if half a window is left.
        assert fixed.table[:, -1].sum() > 0.6


def trials(predicted, measured, *, budget=(2.0, 8.0), alignment=None):
    numbers = dict(budget=budget, predicted=predicted, measured=measured, uncertainty=(0.1, 0.1))
    rows = {name: np.array(values, float) for name, values in numbers.items()}
    return ml.Trials(
        coins=(MIDPOINT.name,) * 2,
        **rows,
        alignment=None if alignment is None else np.array(alignment, float),
    )


def test_a_free_choice_of_levels_and_steps_is_the_best_of_all_choices():
    measured = made(random_effects(0), (0.1, 0.3, 1.0))

    def error(steps=None, levels=None):
        found = best_candidate(Search(measured, ml.Trials.none(), ml.IndependentCoins(), steps, levels), 6.0)
        return found.error

    given = [error(steps, levels) for steps in (8, 16) for levels in ((0, 2), (1, 2), (0, 1, 2))]
    assert error() == pytest.approx(min(given)) and sorted(given)[2] > 1.05 * min(given)


def test_trial_runs_correct_predictions():
    # Beyond the linear model's: sqrt(0.5**2 - 0.3**2) = 0.4 at budget 2, sqrt(0.13**2 - 0.05**2) = 0.12... at budget 8.
    tried = trials((0.3, 0.05), (0.5, 0.13))
    assert tried.corrected(MIDPOINT.name, 2.0, 0.3, 0.0)[0] == pytest.approx(0.5)
    assert tried.corrected(MIDPOINT.name, 1.0, 0.0, 0.0)[0] == pytest.approx(0.4)
    assert tried.corrected(MIDPOINT.name, 4.0, 0.0, 0.0)[0] == pytest.approx((0.4 * 0.12) ** 0.5)
    assert tried.corrected(MIDPOINT.name, 8.0, 0.09, 0.0) == (pytest.approx(0.15), 0.1)
    # Where trials erred a third of what was predicted.
    assert trials((0.3, 0.3), (0.1, 0.1)).corrected(MIDPOINT.name, 4.0, 0.6, 0.0)[0] == pytest.approx(0.2)
    assert tried.corrected("OtherCoins", 4.0, 0.25, 0.02) == (0.25, 0.02)


def test_plans_are_made_with_what_trial_runs_showed():
    measured = made(random_effects(0), (0.01, 0.1, 1.0))
    settings = dict(budget=3.0, levels=(0, 1, 2), steps=16)
    linear = choose_plan(measured, ml.Trials.none(), **settings)
    tried = choose_plan(measured, trials((0.3, 0.3), (0.5, 0.5)), **settings)
    # 0.4 more, in squares; the same plan otherwise.
    assert tried.coin_error == pytest.approx(np.hypot(linear.coin_error, 0.4))
    assert tried.error == pytest.approx(np.hypot(tried.coin_error, 1e-3))
    np.testing.assert_array_equal(tried.table, linear.table)


def test_errors_that_point_the_same_way_are_added():
    # 3 and 4: 5 at a right angle, 7 if they are parallel, sqrt(37) at 60 degrees. Errors are not assumed to cancel.
    for alignment, expected in (((0, 0), 5), ((1, 1), 7), ((0.5, 0.5), 37**0.5), ((-1, -1), 5), ((-1, 1), 7)):
        tried = trials((1, 1), (1, 1), alignment=alignment)
        assert tried.total_error(MIDPOINT.name, 4.0, 3.0, 4.0) == pytest.approx(expected)
    assert trials((1, 1), (1, 1)).total_error(MIDPOINT.name, 4.0, 3.0, 4.0) == pytest.approx(5)


@pytest.mark.parametrize("order", [1, 2])
def test_the_reference_is_extrapolated_by_the_order(order):
    # Errors of h**order exactly: what is left after one extrapolation is nothing.
    ends = {m: [jnp.full((2, 3), 7.0 + m**order)] for m in (1, 2, 4)}
    reference, left = _reference(ends, order)
    np.testing.assert_allclose(reference[0], 7.0, rtol=1e-6)
    assert left == 0
    # Where halving the step does not help as it should, nothing is extrapolated.
    stuck = {m: [jnp.full((2, 3), 7.0 + m**0.5)] for m in (1, 2, 4)}
    reference, left = _reference(stuck, 2)
    assert reference is stuck[1] and left == pytest.approx(2**0.5 - 1, rel=1e-5)


def test_the_check_of_the_report_can_fail():
    # Levels alone miss the increments above them: 3 and 1, when each moves the end by 2 and 1.
    effects = np.stack([np.full((8, 5), size) for size in (4.0, 2.0, 1.0)], axis=1)
    measured = dataclasses.replace(
        made(effects, (0.01, 0.1, 1.0)), single_error=np.array([[3.0, 3.0], [1.0, 1.0], [0.1, 0.1]])
    )
    np.testing.assert_allclose(alone_ratio(measured), [1, 1, np.nan])
    assert "not reliable" not in str(ml.Calibration(measured, ml.Trials.none()))
    wrong = measured.effects * np.array([1, 1, 100])[:, None, None]
    bad = dataclasses.replace(measured, effects=wrong)
    np.testing.assert_allclose(alone_ratio(bad), [34, 100, np.nan])
    text = str(ml.Calibration(bad, ml.Trials.none()))
    assert "Level 1: the linear model predicts 34 times" in text
    assert "Level 2: the linear model predicts 1e+02 times" in text


def test_an_error_out_of_reach_says_the_least_one():
    measured = made(1e-6 * np.ones((16, 2, 4)), (0.01, 1.0), step_error=0.02)
    with pytest.raises(
        UnreachableError, match=r"error of 0.001 cannot be reached: .* at least 0.02\."
    ) as caught:
        choose_plan(measured, ml.Trials.none(), error=1e-3)
    assert caught.value.least == pytest.approx(0.02, rel=0.01)


def test_numbers_of_any_kind():
    measured, none = made(random_effects(0), (0.01, 0.1, 1.0)), ml.Trials.none()
    plain = choose_plan(measured, none, budget=3.0, steps=16, levels=(0, 2))
    with as_user():
        for kind in (np.int64, np.int32):
            same = choose_plan(measured, none, budget=kind(3), steps=kind(16), levels=np.array([0, 2], kind))
            np.testing.assert_array_equal(same.table, plain.table)
        for wrong in ("8", True, np.nan, -1, None, 1j):
            with pytest.raises(ValueError, match="budget"):
                choose_plan(measured, none, budget=wrong)
        with pytest.raises(ValueError, match="a whole number from 1 on"):
            choose_plan(measured, none, budget=3.0, steps=16.0)


def test_a_single_level_takes_the_settings_of_a_solver():
    plan = choose_plan(made(np.ones((16, 2, 4)), (0.5, 1.0)), ml.Trials.none(), budget=8.0)
    assert plan.levels == (1,) and plan.deterministic
    assert isinstance(plan.solver(key=jr.key(0)), diffrax.Euler)
    recording = plan.solver(key=jr.key(0), record=16)
    assert isinstance(recording, ml.MLEM) and recording.record == 16
    with pytest.raises(TypeError, match="recrod"):
        plan.solver(key=jr.key(0), recrod=16)


def test_files_tolerate_other_fields_but_no_other_version(tmp_path):
    plan = choose_plan(made(random_effects(0), (0.01, 0.1, 1.0)), ml.Trials.none(), budget=3.0)
    path = tmp_path / "plan.npz"
    plan.save(path)
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(str(arrays["header"]))
    header["settings"]["invented_later"] = 3
    np.savez(path, **arrays | {"header": np.array(json.dumps(header)), "another": np.zeros(2)})
    assert str(ml.AbstractPlan.load(path)) == str(ml.Plan.load(path)) == str(plan)
    np.savez(path, **arrays | {"header": np.array(json.dumps(header | {"version": 99}))})
    with pytest.raises(ValueError, match=r"version 99 .* reads 1\. Make it again"):
        ml.Plan.load(path)
    with pytest.raises(ValueError, match="not a calibration: it is a plan with coins"):
        ml.Calibration.load(path)
    del header["settings"]["cost"]
    np.savez(path, **arrays | {"header": np.array(json.dumps(header))})
    with pytest.raises(ValueError, match="damaged: cost missing"):
        ml.Plan.load(path)


def test_complex_states_count_their_imaginary_parts():
    # Both levels move y along the imaginary axis; the cheap one by less: D_2 = 0.1 i cos(t). The error of the cheap
    # level alone is 0.1 sin(1), as its effects predict.
    term = ml.MultilevelTerm(
        lambda t, y, args: 0.9j * jnp.cos(t).astype(y.dtype) * jnp.ones_like(y),
        lambda t, y, args: 1j * jnp.cos(t).astype(y.dtype) * jnp.ones_like(y),
        costs=(1, 10),
    )
    found = ml.calibrate(
        term, np.linspace(0, 1, 33), np.ones((3, 2), complex), key=jr.key(0), trials=(), progress=False
    )
    measured = found.measurements
    ts = measured.ts[:-1]
    np.testing.assert_allclose(measured.increment_rms[:, 1], 0.1 * np.cos(ts), rtol=1e-5)
    np.testing.assert_allclose(measured.effect_rms[:, 1], 0.1 * np.cos(ts), rtol=1e-5)
    assert measured.single_error[0, -1] == pytest.approx(0.1 * np.sin(1), rel=0.1)
    # Euler in 32 steps of length h errs by half a step's change of the drift: h / 2 (1 - cos 1).
    assert measured.single_error[1, -1] == pytest.approx((1 - np.cos(1)) / 64, rel=0.05)
    assert measured.start_share == pytest.approx(1, rel=1e-4)


def test_one_level_functions_in_args_and_whole_numbers_as_states():
    args = {"act": jnp.tanh, "name": "tanh"}
    y0s = {"a": np.ones((2, 3), int), "b": np.ones((2, 1), np.float64)}
    term = ml.MultilevelTerm(lambda t, y, args: {k: -args["act"](v) for k, v in y.items()}, costs=(1,))
    found = ml.calibrate(term, np.linspace(0, 1, 17), y0s, args, key=jr.key(0), progress=False)
    # Of d tanh: sinh y = exp(-t) sinh 1.
    share = np.arcsinh(np.exp(-1) * np.sinh(1))
    assert found.measurements.start_share == pytest.approx(share, rel=2e-3)
    plan = found.plan(budget=10)
    assert (
        plan.levels == (0,)
        and len(plan.ts) == 11
        and plan.advice == ("There is one level; it is solved alone.",)
    )
    assert "gamma: needs" in str(found)
    assert repr(found) == "<Calibration for MLEM: 1 level, 16 steps, 2 pilots>"
    assert repr(plan).startswith("<Plan: levels 1, 10 steps, cost 10, predicted error 0.0")


def test_tables_fit_into_80_columns():
    measured = made(random_effects(0), (0.01, 0.1, 1.0))
    plan = choose_plan(measured, ml.Trials.none(), budget=3.0)
    report = str(ml.Calibration(measured, ml.Trials.none())).splitlines()
    for line in [*report[:6], *str(plan).splitlines()[:8]]:
        assert len(line) <= 80, line
