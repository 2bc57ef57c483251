"""The search for steps and the catalogue of plans that it makes."""

import dataclasses

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import as_user

import mlem_jax as ml
from mlem_jax._calibration.fit_entries import Entry, worth_keeping
from mlem_jax._calibration.kept_parts import KeptParts
from mlem_jax._calibration.step_grids import grid_of, resampled

KEY = jr.key(0)


def cheap(t, y, args):
    return jnp.stack([y[1], -jnp.sin(y[0])])


def fine(t, y, args):
    return cheap(t, y, args) + jnp.stack([0.0 * t, -0.3 * jnp.cos(t) * y[0] ** 2 - 0.1 * y[1]])


TERM = ml.MultilevelTerm(cheap, fine, costs=(0.01, 1.0))
TS = np.linspace(0, 2, 65)


@pytest.fixture(scope="module")
def steps():
    return ml.fit_steps(TERM, TS, jr.normal(KEY, (16, 2)), key=KEY, most=3, progress=False)


def table(evaluations):
    """Coefficients with so many evaluations of each level."""
    steps = max(evaluations)
    evaluated = tuple(tuple(range(n)) for n in evaluations[1:])
    return ml.MultistepCoefficients.adams_bashforth(
        np.linspace(0, 1, steps + 1), num_levels=len(evaluations), evaluated=evaluated
    )


def catalogue(entries, **settings):
    """A catalogue whose entries are levels, evaluations and an error that all pilots have."""
    levels, counts, errors = zip(*entries, strict=True)
    return ml.FittedSteps(
        costs=np.array([0.1, 1.0]),
        seconds=np.array([0.002, 0.004]),
        batch=32,
        device="cpu",
        levels=levels,
        coefficients=tuple(table(n) for n in counts),
        errors=np.array(errors)[:, None] * np.ones(8),
        fitted=(True,) * len(levels),
        levels_id=("a", "b"),
        state_id="s",
        **settings,
    )


def interrupted(monkeypatch, call, stops):
    """The result of a call that is interrupted after each of these numbers of parts and then repeated to its end, and
    the total number of parts that were computed."""
    total, left = 0, 0

    def one_more(self):
        nonlocal total, left
        if left == 0:
            raise KeyboardInterrupt
        total, left = total + 1, left - 1

    with monkeypatch.context() as patch:
        patch.setattr(KeptParts, "_computing", one_more)
        for stop in stops:
            left = stop
            with pytest.raises(KeyboardInterrupt):
                call()
        left = -1
        return call(), total


def assert_same_numbers(found, expected, *, but=("seconds",)):
    for field in dataclasses.fields(expected):
        if field.name not in but:
            ours, others = (jax.tree.leaves(getattr(one, field.name)) for one in (found, expected))
            assert len(ours) == len(others)
            for one, other in zip(ours, others, strict=True):
                np.testing.assert_array_equal(one, other)


ALONE = [((1,), (2,), 0.4), ((1,), (4,), 0.1), ((1,), (8,), 0.025)]


def test_grids_are_distinct_and_keep_their_ends():
    for steps in (1, 2, 7, 30, 64):
        for density in (np.zeros(5), np.array([5.0, 0, 0, 0, -5.0])):
            places = grid_of(density, steps, 64)
            assert places[0] == 0 and places[-1] == 64 and np.all(np.diff(places) > 0)
            again = resampled(places, max(1, steps // 2))
            assert again[0] == 0 and again[-1] == 64 and np.all(np.diff(again) > 0)
    assert grid_of(np.zeros(5), 8, 64) == tuple(range(0, 65, 8))
    # Twice as dense at the end as at the start.
    gaps = np.diff(grid_of(np.linspace(0, np.log(2), 5), 16, 640))
    assert 1.6 < gaps[0] / gaps[-1] < 2.4


def test_budgets_and_errors_pick_the_right_entry():
    steps = catalogue(ALONE)
    assert [steps.plan(budget=b).cost for b in (2, 3.9, 4, 100)] == [2, 2, 4, 8]
    assert [steps.plan(error=e).cost for e in (0.5, 0.1, 0.03)] == [2, 4, 8]
    assert steps.plan(typical_error=0.2).typical_error == pytest.approx(0.1)
    assert steps.plan(budget=4).speedup_over_single == 1


def test_several_levels_only_where_they_beat_one():
    # Error falls as the inverse square of the cost: at 0.2 a single level needs 2 sqrt(2) = 2.83 evaluations.
    good, poor, bad = ((0, 1), (5, 2), 0.2), ((0, 1), (9, 2), 0.23), ((0, 1), (9, 2), 0.41)
    steps = catalogue([*ALONE, good])
    plan = steps.plan(budget=2.6)
    assert plan.levels == (0, 1) and plan.cost == pytest.approx(2.5)
    assert plan.speedup_over_single == pytest.approx(8**0.5 / 2.5)
    assert f"speed-up at that error {8**0.5 / 2.5:.2f} over level 2 alone" in str(plan)
    # 2.9 evaluations for what a single level would have with 2.64, if steps of that cost could be had. They cannot, and
    # 2 evaluations have a larger error.
    plan = catalogue([*ALONE, poor]).plan(budget=3)
    assert plan.levels == (0, 1) and plan.speedup_over_single == pytest.approx(2 * (0.4 / 0.23) ** 0.5 / 2.9)
    steps = catalogue([*ALONE, bad])
    assert steps.plan(budget=3).levels == (1,) and len(steps.plans()) == len(ALONE)


def test_for_a_budget_distributions_count_as_in_the_objective_of_the_fit():
    """Errors of 0.1 and 0.12 and distances of 0.05 and 0.02: with a weight of 0.9 the objectives are 0.057 and 0.042,
    with 0.1 they are 0.096 and 0.114."""
    entries = [((1,), (2,), 0.4), ((0, 1), (5, 2), 0.1), ((0, 1), (6, 2), 0.12)]
    distances = np.array([0.3, 0.05, 0.02])
    for weight, cost in ((0.9, 2.6), (0.1, 2.5), (0.0, 2.5)):
        steps = catalogue(entries, distribution=weight, distances=distances)
        assert steps.plan(budget=3).cost == pytest.approx(cost)
        # An error is an error.
        assert steps.plan(typical_error=0.15).cost == pytest.approx(2.5)
        assert len(steps.plans()) == (3 if weight == 0.9 else 2)
    assert catalogue(entries, distribution=0.9).plan(budget=3).cost == pytest.approx(2.5)
    # More than 1.25 times the error is too much, whatever the distance.
    far = [*entries[:2], ((0, 1), (6, 2), 0.13)]
    assert catalogue(far, distribution=0.9, distances=distances).plan(budget=3).cost == pytest.approx(2.5)


def test_the_table_shows_the_distances_that_a_choice_goes_by():
    steps = catalogue(ALONE, distribution=0.9, distances=np.array([0.31, 0.052, 0.017]))
    _, *rows = str(steps).splitlines()
    assert [row.split()[-1] for row in rows] == ["distribution", "0.31", "0.052", "0.017"]
    assert "distribution" not in str(catalogue(ALONE, distances=np.zeros(3)))


def test_entries_that_cheaper_ones_beat_in_error_and_in_distance_are_left_out():
    def entry(levels, counts, error, distance):
        return Entry(levels, table(counts), np.full(8, error), True, distance)

    finest, good = entry((1,), (2,), 0.4, 0.3), entry((0, 1), (2, 1), 0.1, 0.05)
    closer, worse = entry((0, 1), (3, 1), 0.12, 0.02), entry((0, 1), (4, 1), 0.12, 0.06)
    entries, costs = [finest, good, closer, worse], np.array([0.1, 1.0])
    assert worth_keeping(entries, costs, 0.9) == [finest, good, closer]
    assert worth_keeping(entries, costs, 0.0) == [finest, good]


def test_in_seconds_weighs_levels_by_the_clock():
    # The cheap level takes half of the finest level's time: 5 / 2 + 2 evaluations.
    steps = catalogue([*ALONE, ((0, 1), (5, 2), 0.05)])
    assert steps.plan(budget=2.6).levels == (0, 1)
    with pytest.raises(ValueError, match="the cheapest have 2"):
        steps.plan(budget=1.9, in_seconds=True)
    assert steps.plan(budget=4.2, in_seconds=True).levels == (1,)
    assert steps.plan(budget=4.6, in_seconds=True).cost == pytest.approx(4.5)


def test_wrong_questions_are_explained():
    steps = catalogue(ALONE)
    with as_user():
        for wrong in ({}, {"budget": 3, "error": 0.1}, {"budget": -1.0}):
            with pytest.raises(ValueError, match="exactly one positive number"):
                steps.plan(**wrong)
        with pytest.raises(ValueError, match="most accurate ones reach 0.025"):
            steps.plan(error=0.001)
        with pytest.raises(ValueError, match="Fit them again"):
            steps.require((cheap, fine), jnp.ones(2))


@pytest.mark.slow
def test_files_give_back_what_was_written(tmp_path, steps):
    steps.save(tmp_path / "steps.npz")
    again = ml.FittedSteps.load(tmp_path / "steps.npz")
    assert str(again) == str(steps)
    again.require((cheap, fine), jnp.ones(2))
    ours, theirs = steps.plan(budget=3), again.plan(budget=3)
    assert ours.levels == theirs.levels
    jax.tree.map(np.testing.assert_array_equal, ours.coefficients, theirs.coefficients)
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(ValueError, match="not a file of fitted steps"):
        ml.FittedSteps.load(tmp_path / "other.npz")


@pytest.mark.slow
def test_plans_do_on_fresh_states_what_they_predict(steps):
    y0s = jr.normal(jr.key(5), (128, 2))
    exact = jax.vmap(
        lambda y: diffrax.diffeqsolve(
            diffrax.ODETerm(fine),
            diffrax.Dopri8(),
            0.0,
            2.0,
            0.01,
            y,
            stepsize_controller=diffrax.ConstantStepSize(),
        ).ys[-1]
    )(y0s)
    for budget in (1.5, 3):
        plan = steps.plan(budget=budget)
        assert plan.cost <= budget
        ends = jax.vmap(
            lambda y, plan=plan: diffrax.diffeqsolve(
                plan.terms(TERM), plan.solver(), plan.grid[0], plan.grid[-1], None, y,
                stepsize_controller=diffrax.StepTo(plan.grid),
            ).ys[-1]
        )(y0s)  # fmt: skip
        logs = np.log(np.sqrt(np.mean((ends - exact) ** 2, axis=1)))
        spread = np.hypot(logs.std() / 128**0.5, plan.relative_error_of_typical)
        # 4 standard errors, and a fifth for what choosing among many on 16 pilots flatters.
        assert abs(logs.mean() - np.log(plan.typical_error)) < 4 * spread + 0.2


@pytest.mark.slow
def test_search_beats_equal_steps_with_classical_coefficients(steps):
    plan = steps.plan(budget=3)
    y0s = jr.normal(jr.key(6), (64, 2))

    def ends(solver, term, ts):
        ts = jnp.asarray(ts)
        return jax.vmap(
            lambda y: diffrax.diffeqsolve(
                term, solver, ts[0], ts[-1], None, y, stepsize_controller=diffrax.StepTo(ts)
            ).ys[-1]
        )(y0s)

    exact = ends(diffrax.Dopri8(), diffrax.ODETerm(fine), np.linspace(0, 2, 101))
    equal = np.linspace(0, 2, 4)
    classical = ml.LinearMultistep(ml.MultistepCoefficients.adams_bashforth(equal))
    theirs = np.abs(ends(classical, ml.MultilevelTerm(fine), equal) - exact).mean()
    ours = np.abs(ends(plan.solver(), plan.terms(TERM), plan.ts) - exact).mean()
    assert ours < 0.5 * theirs


@pytest.mark.slow
def test_what_is_interrupted_continues_without_repetition_and_ends_on_the_same_numbers(tmp_path, monkeypatch):
    y0s = jr.normal(KEY, (8, 2))
    settings = {"key": KEY, "costs": (0.01, 1.0), "batch_size": 4, "progress": False}

    def fit(keep_in=None):
        return ml.fit_steps(TERM, TS[::8], y0s, most=2, keep_in=keep_in, **settings)

    def calibrate(keep_in=None):
        return ml.calibrate(TERM, TS[::8], y0s, trials=(), keep_in=keep_in, **settings)

    whole, parts = interrupted(monkeypatch, fit, [])
    # Within the search, and within the final fits, each of which has at least one part for itself and one in it.
    found, computed = interrupted(
        monkeypatch, lambda: fit(tmp_path), [1, parts - 2 - 2 * len(whole.levels), 1, 2]
    )
    # An entry that is interrupted between two of its parts is begun again, without those.
    assert parts <= computed <= parts + 2
    assert_same_numbers(found, whole)
    measured, parts = interrupted(monkeypatch, calibrate, [])
    # The levels' seconds, and for both batches increments and two levels with each of three strides.
    assert parts == 1 + 2 * (1 + 2 * 3)
    found, computed = interrupted(monkeypatch, lambda: calibrate(tmp_path), [0, 2, 7])
    assert computed == parts
    assert_same_numbers(found.measurements, measured.measurements)
    # A line that was cut short and a damaged file are computed again; parts of other pilots are not used.
    (folder,) = tmp_path.glob("fit-*")
    with open(folder / "numbers.txt", "a") as file:
        file.write('\n["(0')
    (folder / "entry-1.npz").write_bytes(b"short")
    found, computed = interrupted(monkeypatch, lambda: fit(tmp_path), [])
    assert computed == 1
    assert_same_numbers(found, whole)
    y0s = y0s + 0.1
    with pytest.raises(ZeroDivisionError), monkeypatch.context() as patch:
        patch.setattr(KeptParts, "_computing", lambda self: 1 / 0)
        fit(tmp_path)


@pytest.mark.slow
def test_one_level_is_a_ladder():
    term = ml.MultilevelTerm(fine)
    steps = ml.fit_steps(term, TS, jr.normal(KEY, (8, 2)), key=KEY, most=2, costs=[1.0], progress=False)
    plan = steps.plan(budget=2)
    assert plan.levels == (0,) and plan.cost == 2 and "alone" in str(plan)
