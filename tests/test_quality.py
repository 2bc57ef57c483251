"""The study of quality (benchmarks/quality.py): its measures, and images that an interrupted run has made."""

import time
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import mlem_jax as ml

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def _views(rng, count, shift=0.0, width=4):
    from _quality_measures import Views

    return Views(*(rng.normal(size=(count, width)) + shift for _ in range(3)))


def test_a_shift_of_the_same_images_is_the_excess():
    """The Frechet distance of a set and its shift by v is v squared, that of sorted projections v."""
    from _quality_measures import Target, Views

    converged = _views(np.random.default_rng(0), 200)
    shifted = Views(*(part + 0.5 for part in converged))
    judged = Target(converged, converged).judge(shifted)
    np.testing.assert_allclose(judged.excess, [4 * 0.25, 4 * 0.25, 0.5], rtol=1e-6)
    assert np.all(judged.error < 1e-6)


def test_components_of_large_images_are_those_of_the_first_ones(monkeypatch):
    """Images with more pixels than `MANY`: the principal components of as many images, from their covariance."""
    import _quality_measures

    images = np.random.default_rng(4).normal(size=(30, 40)) * np.linspace(3, 1, 40)
    for name, value in {"MANY": 20, "COMPONENTS": 3}.items():
        monkeypatch.setattr(_quality_measures, name, value)
    found = _quality_measures._components(images)
    assert found.shape == (40, 3)
    values = np.linalg.eigvalsh(np.cov(images[:20].T))[::-1][:3]
    np.testing.assert_allclose(np.cov(images[:20] @ found, rowvar=False), np.diag(values), atol=1e-9)


def test_the_converged_images_have_no_excess():
    from _quality_measures import Target

    rng = np.random.default_rng(1)
    converged, other = _views(rng, 300), _views(rng, 300)
    target = Target(other, converged)
    judged = target.judge(converged)
    assert np.all(judged.excess == 0) and np.all(judged.error == 0)
    assert np.all(target.floor > 0)


def test_the_standard_error_of_the_excess():
    """The jackknife's against the standard deviation over 60 independent data sets: the latter's own relative
    error is 1 / sqrt(120), so a factor of 1.4 is more than 3.5 standard errors away."""
    from _quality_measures import Target, Views

    found, told = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        converged, other = _views(rng, 200), _views(rng, 200)
        # Shifted, and a fifth of each image's deviation is its own.
        mine = Views(*(0.3 + part + 0.2 * rng.normal(size=part.shape) for part in converged))
        judged = Target(other, converged).judge(mine)
        found.append(judged.excess)
        told.append(judged.error)
    ratio = np.sqrt(np.mean(np.square(told), axis=0)) / np.std(found, axis=0, ddof=1)
    assert np.all((ratio > 1 / 1.4) & (ratio < 1.4))


def test_the_excess_of_another_sample_of_the_same_law_is_nothing():
    """The same law, coupled with a correlation of 0.8: over 40 data sets the mean excess of the two Frechet distances
    is within 4 of its standard errors of 0, where that of the distances themselves is more than 10."""
    from _quality_measures import Target, Views

    raw, corrected = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        converged = _views(rng, 200)
        mine = Views(*(0.8 * part + 0.6 * rng.normal(size=part.shape) for part in converged))
        judged = Target(converged, converged).judge(mine)
        raw.append(judged.distance[:2])
        corrected.append(judged.excess[:2])

    def standard_errors(values):
        return np.mean(values, axis=0) / (np.std(values, axis=0, ddof=1) / len(values) ** 0.5)

    assert np.all(standard_errors(raw) > 10)
    assert np.all(np.abs(standard_errors(corrected)) < 4)


def _problem():
    from _methods import Shared

    def level(t, y, args):
        return -y / t

    return Shared("toy", (level,), (1.0,), jnp.asarray([2.0, 1.5, 1.0]), None, (2, 2, 1), 0.2)


def _entry(problem, factor=1.0):
    """One step of Euler on a multiple of the drift."""
    from _methods import multilevel
    from _quality_images import Entry

    table = ml.MultistepCoefficients.adams_bashforth([2.0, 1.0], drifts=1)
    table = ml.MultistepCoefficients(
        ts=table.ts,
        drifts=factor * table.drifts,
        increments=table.increments,
        evaluated=table.evaluated,
        corrections=table.corrections,
        repeats=table.repeats,
    )
    solver = ml.LinearMultistep(table)
    method = multilevel(problem, "toy", "1 step", lambda key: solver, table.ts, (0,), random=False)
    return Entry("toy", method, bytes(str(factor), "ascii"))


@pytest.fixture
def small_blocks(monkeypatch):
    import _quality_images

    for name, value in (("BATCH", 2), ("BATCHES", 2), ("BLOCK", 4)):
        monkeypatch.setattr(_quality_images, name, value)


def test_images_go_on_where_a_run_was_interrupted(tmp_path, small_blocks):
    """Image i depends neither on how many are made nor on when, and is not made twice."""
    from _quality_images import Maker, OutOfTime

    problem = _problem()
    entry = _entry(problem)
    whole = Maker(problem, tmp_path / "whole").images(entry, 10, seed=3)
    assert whole.images.shape == (10, 2, 2, 1) and whole.cost == 1.0
    assert len(np.unique(whole.images)) > 30
    folder = tmp_path / "parts"
    first = Maker(problem, folder).images(entry, 4, seed=3)
    with pytest.raises(OutOfTime):
        Maker(problem, folder, until=time.monotonic() - 1).images(entry, 8, seed=3)
    kept = sorted(folder.rglob("*.npz"))
    before = [path.stat().st_mtime_ns for path in kept]
    rest = Maker(problem, folder).images(entry, 10, seed=3)
    np.testing.assert_array_equal(first.images, whole.images[:4])
    np.testing.assert_array_equal(rest.images, whole.images)
    assert len(kept) == 1 and [path.stat().st_mtime_ns for path in kept] == before


def test_images_of_other_coefficients_or_noise_are_others(tmp_path, small_blocks):
    """With the drift -y / t a step from 2 to 1 multiplies by 1 + factor / 2."""
    from _quality_images import Maker

    problem = _problem()
    maker = Maker(problem, tmp_path)
    once, twice = (maker.images(_entry(problem, f), 4, seed=3).images for f in (1.0, 0.5))
    start = np.concatenate([np.asarray(maker.batch(i, 3).y0) for i in range(2)])
    for images, factor in ((once, 1.0), (twice, 0.5)):
        np.testing.assert_allclose(images, np.clip((1 + factor / 2) * start, -1, 1), atol=1e-3)
    assert np.abs(maker.images(_entry(problem), 4, seed=4).images - once).max() > 0.1


def test_a_switched_level_is_the_small_one_between():
    from _quality_fits import Between

    level = Between(lambda t, y, args: 0 * y, lambda t, y, args: 1 + 0 * y, 8.0, 2.0)
    found = [float(level(jnp.asarray(t), jnp.zeros(()), None)) for t in (9.0, 8.0, 2.1, 2.0, 1.0)]
    assert found == [1, 0, 0, 1, 1]


def test_a_switched_method_is_charged_for_what_it_evaluates():
    """Six steps, of which the small level, a tenth as dear, does three."""
    from _quality_fits import Between, Switch
    from _quality_methods import switched_entry

    problem = _problem()._replace(levels=(lambda t, y, args: -y / t,) * 2, costs=(0.1, 1.0))
    ts = np.array([16.0, 8.0, 6.0, 4.0, 2.0, 1.0, 0.5])
    table = ml.MultistepCoefficients.adams_bashforth(ts, drifts=1)
    problem = problem._replace(ts=jnp.asarray(ts))
    way, level = Switch((0, 1, 2, 3, 4, 5, 6), 0, 8.0, 2.0), Between(*problem.levels, 8.008, 2.002)
    entry = switched_entry("toy", problem, level, way, table)
    from _methods import Batch
    from _runs import run

    found = run(entry.method, Batch(jnp.ones((2, 2, 2, 1)), None, None, np.zeros((2, 2, 2, 1))))
    assert found.cost == pytest.approx(3 + 3 * 0.1)


def test_costs_at_equal_quality():
    """Where the fitted single network's excess is 8 / cost**2 and another method's 2 / cost**2, the latter needs half
    the cost; the better of the two single ones counts."""
    from _quality_measures import SHORT
    from _quality_methods import LAW, PATH, SEVERAL
    from _quality_report import equal_quality, TARGETS

    def row(method, cost, size):
        keys = [f"{short}_to_{target}_excess" for short in SHORT.values() for target in TARGETS]
        return {"method": method, "cost": cost, **dict.fromkeys(keys, size / cost**2)}

    rows = [row(PATH, float(n), 8.0) for n in (4, 5, 6, 8)] + [row(LAW, 4.0, 16.0)]
    rows += [row(SEVERAL, cost, 2.0) for cost in (1.0, 2.0, 4.0)]
    found = [line for line in equal_quality(rows) if line["method"] == SEVERAL]
    assert len(found) == 4 * 9
    for line in found:
        assert line["cost"] == pytest.approx(line["single"] / 2)


def test_steps_of_a_catalogue_are_fitted_again_as_they_were_searched(tmp_path, monkeypatch):
    """The schedule handed to the fit has the catalogue's times, levels and evaluations."""
    from _quality_fits import Fits

    from mlem_jax.diffusion import load_ladder

    fits, given = Fits(load_ladder(), tmp_path, pilots=8), []
    looks = np.array([[True, False], [False, True], [True, False]])
    table = ml.MultistepCoefficients(
        ts=fits.ts[[0, 40, 90, 128]],
        drifts=np.ones((3, 1)),
        increments=np.ones((3, 2, 1)),
        evaluated=looks,
        corrections=np.ones((3, 2, 1)),
        repeats=np.array([False, True, True]),
    )
    monkeypatch.setattr(fits, "coefficients", lambda schedule: given.append(schedule) or table)
    found = fits.for_the_path((0, 1, 3), table)
    (schedule,) = given
    assert schedule.places == (0, 40, 90, 128) and schedule.base == 0
    assert schedule.evaluated == ((1,), (3,), (1,)) and schedule.repeats
    np.testing.assert_array_equal(found.evaluated, looks)
    # Kept: not fitted a second time.
    fits.for_the_path((0, 1, 3), table)
    assert len(given) == 1


def test_a_catalogue_is_asked_for_the_budgets_that_it_can_meet(monkeypatch):
    """The plan for each budget, once; single levels and budgets below the cheapest steps are left out."""
    import _quality_methods as methods

    def plan_for(cost, levels):
        return SimpleNamespace(cost=cost, levels=levels, coefficients=cost)

    class Steps:
        def plans(self):
            return [plan_for(2.3, (1, 3)), plan_for(3.0, (3,)), plan_for(4.4, (1, 3))]

        def plan(self, *, budget):
            return max((one for one in self.plans() if one.cost <= budget), key=lambda one: one.cost)

    monkeypatch.setattr(methods, "fitted", lambda kind, problem, levels, table: (kind, table))
    monkeypatch.setattr(methods, "identity_of", lambda table: str(table).encode())
    fits = SimpleNamespace(for_the_path=lambda levels, table: -table)
    found = list(methods.of_catalogue(None, fits, methods.EFFORTS["quick"], Steps(), 8.0))
    both = (methods.SEVERAL_LAW, methods.SEVERAL)
    assert found == [(both[0], 2.3), (both[0], 4.4), (both[1], -2.3), (both[1], -4.4)]


def test_the_papers_row_has_several_levels_where_one_alone_is_better():
    from _quality_methods import plan_of

    class Given:
        """The error of a plan, by its levels. Two levels alone cost too much."""

        costs = np.array([0.1, 0.3, 1.0])

        def plan(self, *, budget, coins, levels):
            if levels == (1, 2):
                raise ValueError
            errors = {None: 0.1, (0, 2): 0.3, (0, 1, 2): 0.2}
            return SimpleNamespace(levels=levels or (1,), error=errors[levels])

    def levels(several):
        return plan_of(Given(), 2.0, ml.IndependentCoins(), several=several).levels

    assert levels(False) == (1,) and levels(True) == (0, 1, 2)
