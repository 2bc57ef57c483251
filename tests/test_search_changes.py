"""Changes of schedules in the search, and schedules whose highest level is not the finest one."""

import contextlib
import importlib
from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from fit_problems import COSTS, make_pilots, PLACES, TS

import mlem_jax as ml
from mlem_jax._calibration import fit_search, search_changes, search_steps
from mlem_jax._calibration.fit_rollout import Memory, Schedule
from mlem_jax._calibration.fit_search import worth_fitting
from mlem_jax._calibration.fit_step import left_out
from mlem_jax._calibration.search_changes import with_base, without_repeats
from mlem_jax._calibration.search_steps import _by_merit, multilevel, thinned
from mlem_jax._calibration.searcher import Found, Searcher
from mlem_jax._progress import show_progress

ALONE = Schedule(PLACES, 2, ((),) * 6)
KEY = jr.key(0)


def pendulum(a, b, t, y, args):
    return jnp.stack([y[1], -jnp.sin(y[0]) - a * jnp.cos(t) * y[0] ** 2 - b * y[1]])


@pytest.fixture(scope="module")
def searcher():
    pilots = make_pilots()
    return Searcher(pilots, Memory(), left_out(pilots.count, 4))


def steps_of(schedule, level):
    return {n for n, levels in enumerate(schedule.evaluated) if level in levels}


def with_finest(steps, base):
    """The finest level in these of the six steps, with a base."""
    return Schedule(PLACES, base, tuple((2,) if n in steps else () for n in range(6)))


def test_thinning_removes_the_evaluation_without_which_the_error_is_smallest(searcher):
    """After the first time only the four are tried that were the best to remove."""
    left = list(range(6))
    found = list(thinned(searcher, ALONE, 1, 2))
    assert [len(steps_of(one.schedule, 2)) for one in found] == [5, 4, 3, 2]
    considered = 6
    for one in found:
        errors = {
            n: searcher.try_out(with_finest(set(left) - {n}, 1)).typical_error for n in left[:considered]
        }
        best, *others = sorted(errors, key=errors.__getitem__)
        left, considered = [*others, *left[considered:]], 4
        assert steps_of(one.schedule, 2) == set(left) and one.schedule.base == 1
        assert one.typical_error == pytest.approx(errors[best], rel=1e-6)


@pytest.mark.parametrize("error_without, repeats", [(0.1, False), (0.12, True)])
def test_a_base_is_repeated_only_where_this_is_worth_its_cost(searcher, monkeypatch, error_without, repeats):
    """Repeats of a base with half the cost of the finest level add 2 * 0.5 to 5: at equal merit this is worth a factor
    of (6 / 5)**2.5 = 1.58 in error, so 0.07 is worth it instead of 0.12, and not instead of 0.1."""
    schedule = Schedule(PLACES, 0, ((), (), (2,), (), (2,), ()))

    def known(one, like=None):
        return Found(one, 0.07 if one.repeats else error_without, one.cost(np.array([0.5, 1.0, 1.0])), [])

    monkeypatch.setattr(searcher, "try_out", known)
    assert without_repeats(searcher, known(schedule)).schedule == schedule._replace(repeats=repeats)


@pytest.mark.parametrize("price, steps", [(0.5, 4), (0.9, 3), (0.01, 16)])
def test_an_expensive_base_begins_with_few_steps(searcher, monkeypatch, price, steps):
    """With two evaluations of the next level: as many steps as cost the same, from 3 to 16."""

    class Tried(Exception):
        pass

    def try_out(schedule, like=None):
        raise Tried(schedule)

    monkeypatch.setattr(searcher, "try_out", try_out)
    monkeypatch.setattr(searcher.pilots, "costs", np.array([price, 1.0, 2.0]))
    with pytest.raises(Tried) as tried:
        next(multilevel(searcher, 1, 1, []))
    (first,) = tried.value.args
    assert len(steps_of(first, 1)) == 2 and len(first.evaluated) == steps


@pytest.mark.parametrize("costs, bases", [(COSTS, {0}), (np.array([0.05, 0.1, 1.0]), {0, 1})])
def test_a_search_starts_from_thinned_schedules_with_each_cheap_base(searcher, monkeypatch, costs, bases):
    """Schedules with the times of the finest level alone have a tenth of the error of all others. The second level is a
    base of them if it costs at most a tenth of the finest level."""
    tried = set()

    def try_out(schedule, like=None):
        tried.add(schedule)
        return Found(schedule, 0.1 if schedule.places == PLACES else 1.0, schedule.cost(costs), [])

    monkeypatch.setattr(searcher, "try_out", try_out)
    monkeypatch.setattr(searcher.pilots, "costs", costs)
    one, *others = multilevel(searcher, 2, 4, [ALONE])
    # About half of the evaluations are left.
    assert one[0].schedule.places != PLACES
    assert all(found[0].schedule.places == PLACES for found in others)
    assert {base for base in (0, 1) if with_finest(set(range(1, 6)), base) in tried} == bases


def test_the_best_schedule_is_first_and_each_is_contained_once():
    best, other = (Found(with_finest(steps, 0), 0.1, float(len(steps)), []) for steps in ({2}, {2, 4}))
    assert _by_merit([other, best, other._replace(rollouts=[]), best]) == [best, other]


def test_a_schedule_that_is_found_twice_is_fitted_once():
    several = Found(with_finest({2, 4}, 0), 0.1, 2.3, [])
    single = Found(ALONE, 0.2, 6.0, [])
    found = [single, several, several._replace(rollouts=[])]
    assert worth_fitting(found, COSTS, 64, distribution=False) == [ALONE, several.schedule]


def test_for_the_distribution_variants_of_schedules_are_fitted_too():
    """With 1.5 times the steps and with the middle level as the base; and schedules with up to 1.25 times the error of
    a cheaper one."""
    best, near, far = (
        Found(with_finest(steps, 0), error, cost, [])
        for steps, error, cost in (({2}, 0.1, 1.0), ({2, 4}, 0.12, 2.0), ({1, 3, 5}, 0.13, 3.0))
    )
    assert worth_fitting([best, near, far], COSTS, 64, distribution=False) == [best.schedule]
    found = worth_fitting([best, near, far], COSTS, 64, distribution=True)
    assert best.schedule in found and near.schedule in found and far.schedule not in found
    assert with_finest({2}, 1) in found and with_finest({2, 4}, 1) in found
    (more, _) = [one for one in found if len(one.evaluated) == 9]
    assert more.base == 0 and len(steps_of(more, 2)) == 1 and more.places[-1] == PLACES[-1]


def test_schedules_with_many_evaluations_of_the_highest_level_have_no_variants(monkeypatch):
    few, many = (Found(with_finest(steps, 0), 0.1, 2.0, []) for steps in ({2, 4}, {1, 2, 3}))
    monkeypatch.setattr(fit_search, "_MOST_VARIED", 2)
    assert worth_fitting([many], COSTS, 64, distribution=True) == [many.schedule]
    assert len(worth_fitting([few], COSTS, 64, distribution=True)) == 3


def test_levels_below_a_new_base_are_left_out():
    schedule = Schedule(PLACES, 0, ((), (1,), (1, 2), (), (2,), ()))
    assert with_base(schedule, 1) == Schedule(PLACES, 1, ((), (), (2,), (), (2,), ()))


def test_the_highest_level_need_not_be_the_finest(searcher):
    for found in multilevel(searcher, 1, 1, [ALONE]):
        assert found and all(one.schedule.levels == (0, 1) for one in found)
        assert len({one.schedule for one in found}) == len(found)


def test_the_best_starts_get_the_changes_that_need_many_roll_outs(searcher, monkeypatch):
    """With few evaluations of the highest level two of them here, with more only one."""
    given, starts = [], []

    def all_changed(searcher, found, top):
        given[-1].append(found)
        return found._replace(typical_error=found.typical_error / 2)

    monkeypatch.setattr(search_steps, "_all_changed", all_changed)
    monkeypatch.setattr(search_steps, "_EFFORTS", {2: search_steps._Effort(2, 3, 2)})
    given.append([])
    for found in multilevel(searcher, 2, 3, [ALONE]):
        starts.append(len(found))
        changed = given[-1]
        assert found[0].typical_error == min(changed, key=lambda one: one.merit).typical_error / 2
        assert all(one.merit >= changed[-1].merit for one in found[len(changed) :])
        given.append([])
    assert min(starts[1:]) > 1
    assert [len(changed) for changed in given[1:3]] == [2, 1]


def known_errors(searcher, monkeypatch, best):
    """Schedules whose error grows with the distance of their times from `best`."""

    def try_out(schedule, like=None):
        apart = np.linalg.norm(np.array(schedule.places) - best)
        return Found(schedule, float(np.exp(apart / 16)), schedule.cost(COSTS), [])

    monkeypatch.setattr(searcher, "try_out", try_out)
    return try_out


def test_times_are_moved_together_and_one_by_one(searcher, monkeypatch):
    """By a quarter of the smallest step, and then by a quarter of the distance to a neighbour; one index is enough."""
    try_out = known_errors(searcher, monkeypatch, np.array([0, 13, 25, 37, 49, 61, 64]))
    start = ALONE._replace(places=(0, 8, 20, 32, 44, 56, 64))
    tried = []
    monkeypatch.setattr(searcher, "try_out", lambda *given: tried.append(try_out(*given)) or tried[-1])
    # All times by two, two and one, since the last step becomes shorter.
    found = search_changes.moved_times(searcher, try_out(start), 2)
    assert tried[0].schedule.places == (0, 10, 22, 34, 46, 58, 64)
    assert found.schedule.places == (0, 13, 25, 37, 49, 61, 64)
    assert all(min(np.diff(one.schedule.places)) >= 1 for one in tried)


def test_times_stay_apart_when_they_are_moved_together(searcher, monkeypatch):
    def try_out(schedule, like=None):
        assert min(np.diff(schedule.places)) >= 1
        return Found(schedule, float(np.exp(-sum(schedule.places) / 50)), schedule.cost(COSTS), [])

    monkeypatch.setattr(searcher, "try_out", try_out)
    found = search_changes._times_together(searcher, try_out(ALONE), 0.25)
    # The last but one time is next to the end.
    assert found.schedule.places[-2:] == (63, 64)


def test_one_by_one_only_times_are_moved_at_which_the_level_is_evaluated(searcher, monkeypatch):
    """In the second and the fourth step, by half of the distance to a neighbour."""
    wanted = np.array([0, 14, 26, 38, 50, 58, 64])
    try_out = known_errors(searcher, monkeypatch, wanted)
    start = with_finest({1, 3}, 0)._replace(places=(0, 8, 20, 32, 44, 56, 64))
    found = search_changes._times_one_by_one(searcher, try_out(start), 2, 0.5)
    assert found.schedule.places == (0, 14, 20, 38, 44, 56, 64)


@pytest.mark.slow
def test_a_catalogue_has_steps_for_less_than_one_evaluation_of_the_finest_level(monkeypatch):
    """On fresh initial states they are better than each smaller level alone for this cost. The progress display has
    room for all reports."""
    reports, module = {}, importlib.import_module("mlem_jax._calibration.fit_steps")

    @contextlib.contextmanager
    def display(label, *, total, **settings):
        reports[label] = own = []
        with show_progress(label, total=total, shown=False) as shown:
            monkeypatch.setattr(shown, "advance", lambda count, text: own.append(count), raising=False)
            yield shown
        # The number of searches is not known before.
        assert sum(own) == total if label == "fitting steps" else 0 < sum(own) <= total

    monkeypatch.setattr(module, "show_progress", display)

    def problem(key):
        return ml.MultilevelTerm(
            *[partial(pendulum, *one) for one in ((0, 0), (0.2, 0), (0.25, 0.1))], costs=COSTS
        )

    steps = ml.fit_steps(
        problem, TS, jr.normal(KEY, (24, 2)), key=KEY, costs=tuple(COSTS), most=2, progress=False
    )
    fresh = jr.normal(jr.key(1), (64, 2))

    def ends(terms, solver, ts):
        grid = diffrax.StepTo(jnp.asarray(ts))
        solve = partial(diffrax.diffeqsolve, terms, solver, ts[0], ts[-1], None, stepsize_controller=grid)
        return jax.vmap(lambda y0: solve(y0).ys[-1])(fresh)

    exact = ends(diffrax.ODETerm(partial(pendulum, 0.25, 0.1)), diffrax.Tsit5(), TS)

    def error(plan):
        apart = ends(plan.terms(problem(KEY)), plan.solver(), plan.ts) - exact
        return float(jnp.exp(jnp.mean(jnp.log(jnp.linalg.norm(apart, axis=-1)))))

    several = [plan for plan in steps.plans() if len(plan.levels) > 1 and plan.cost < 1]
    assert several and all(2 not in plan.levels for plan in several)
    assert set(reports) == {"searching steps", "fitting steps"}
    for plan in several:
        alone = [one for one in steps.plans() if one.cost <= plan.cost and len(one.levels) == 1]
        assert all(error(plan) < error(one) for one in alone)
