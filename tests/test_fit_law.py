"""Steps fitted to the distribution of the states beside each pilot's own path."""

import importlib

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from fit_problems import make_pilots, PLACES

import mlem_jax as ml
from mlem_jax._calibration import fit_entries
from mlem_jax._calibration.fit_law import fit_features, Law
from mlem_jax._calibration.fit_rollout import Memory, Rollout, Schedule
from mlem_jax._calibration.fit_step import everyone
from mlem_jax._calibration.kept_parts import KeptParts
from mlem_jax._calibration.searcher import Searcher


@pytest.fixture(scope="module")
def pilots():
    return make_pilots()


def one_feature(share, *, slope=0.6, noise=0.8, count=4000, size=3, shift=0.0):
    """The coefficient for a reference that is the slope times a feature plus noise that no feature knows."""
    rng = np.random.default_rng(0)
    feature, unknown = rng.normal(size=(2, count, size))
    reference = slope * feature + noise * unknown + shift
    law = Law(share, np.eye(size)[:, :2]) if share else None
    subsets = [((0,), np.array([0.5]))]
    return float(
        fit_features([feature], np.zeros((count, size)), reference, subsets, everyone(count), None, law)[0, 0]
    )


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_part_of_the_lost_spread_comes_back(share):
    """Of (1 - share) E|c f - x|^2 + share (|c| - sd(x))^2 with sd(x) = 1 the minimum is at
    c = (1 - share) slope + share. Least squares leave the spread at the slope. Sampling errors are below 2%."""
    assert one_feature(share) == pytest.approx((1 - share) * 0.6 + share, rel=0.03)


def test_the_target_of_states_with_the_references_law_is_half_their_own():
    """States that are the reference's in another order have its mean and spread: the transport map leaves them where
    they are."""
    rng = np.random.default_rng(1)
    reference = rng.normal(size=(50, 6)) * np.arange(1, 7) + 3
    states = reference[rng.permutation(50)]
    law = Law.of(reference, 0.25)
    np.testing.assert_allclose(law.target(states, reference), 0.75 * reference + 0.25 * states, rtol=1e-10)


def test_a_set_of_another_mean_and_spread_is_moved_onto_the_references():
    """By an affine map, whatever it is on each principal component."""
    rng = np.random.default_rng(2)
    reference = rng.normal(size=(400, 4)) * np.array([4.0, 2.0, 1.0, 0.5]) - 1
    law = Law.of(reference, 1.0)
    moved = 1.5 * (reference - reference.mean(0)) + 7
    np.testing.assert_allclose(law.target(moved, reference), reference, atol=1e-10)


@pytest.mark.slow
def test_fitted_for_the_distribution_the_end_has_more_of_its_spread(monkeypatch):
    """On fresh states of pendulums whose cheap level swings at another rate: the squared difference of the spreads to
    the fine level's is at least halved, for eight steps of the cheap level alone."""

    def cheap(t, y, args):
        return jnp.stack([y[1], -0.5 * jnp.sin(y[0])])

    def fine(t, y, args):
        return jnp.stack([y[1], -jnp.sin(2 * y[0])])

    def searched(pilots, most, kept, report):
        schedule = Schedule(tuple(range(0, 65, 8)), 0, ((),) * 8)
        yield Searcher(pilots, Memory(), everyone(pilots.count)).try_out(schedule)

    monkeypatch.setattr(
        importlib.import_module("mlem_jax._calibration.fit_steps"), "search_schedules", searched
    )
    term, ts = ml.MultilevelTerm(cheap, fine, costs=(0.1, 1.0)), np.linspace(0, 3, 65)
    pilots, fresh = (jr.normal(jr.key(seed), (count, 2)) for seed, count in ((0, 64), (2, 2000)))

    def spread(terms, solver, times):
        controller = diffrax.StepTo(jnp.asarray(times, fresh.dtype))

        def end(y):
            return diffrax.diffeqsolve(
                terms, solver, times[0], times[-1], None, y, stepsize_controller=controller
            ).ys[0]

        return jnp.std(jax.vmap(end)(fresh), axis=0)

    exact, errors = spread(diffrax.ODETerm(fine), diffrax.Tsit5(), ts), []
    for share in (0.0, 0.9):
        steps = ml.fit_steps(term, ts, pilots, key=jr.key(1), progress=False, distribution=share)
        (plan,) = steps.plans()
        mine = spread(plan.terms(term), plan.solver(), np.asarray(plan.ts))
        errors.append(float(jnp.sum((mine - exact) ** 2)))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("error", "classical", "levels", "expected"),
    [
        (1.04, 9.0, (2,), "distribution"),
        (1.06, 9.0, (2,), "trajectories"),
        (1.5, 9.0, (0, 2), "distribution"),
        (1.5, 1.2, (0, 2), "trajectories"),
        (1.5, 0.9, (0, 2), "classical"),
        (1.04, 0.9, (2,), "classical"),
    ],
)
def test_which_fit_is_kept(monkeypatch, pilots, error, classical, levels, expected):
    """The fit to the trajectories has an error of 1. The finest level alone is fitted for the distribution only if this
    increases the error by at most 5%, other steps unless the classical coefficients are better."""
    errors, kinds = {"distribution": error, "trajectories": 1.0, "classical": classical}, []

    def roll_out(pilots, schedule, memory, groups, *, law=None, classical=False):
        kind = "distribution" if law else "classical" if classical else "trajectories"
        kinds.append(kind)
        return Rollout(schedule, memory, groups, (), (), np.full(8, errors[kind]))

    def refine(pilots, rollout, report, kept):
        return rollout

    monkeypatch.setattr(fit_entries, "roll_out", roll_out)
    monkeypatch.setattr(fit_entries, "refine", refine)
    evaluated = ((levels[-1],) if len(levels) > 1 else (),) * 2
    schedule = Schedule(PLACES[:3], levels[0], evaluated)
    law = Law(0.9, np.eye(2))
    found, better = fit_entries._final(pilots, schedule, law, KeptParts(), lambda what: None)
    assert found.errors[0] == errors[expected] and better == (expected != "classical")
    # The trajectories are only fitted where this fit may be needed.
    assert ("trajectories" in kinds) == (len(levels) == 1 or error > classical)


@pytest.mark.parametrize(("level", "refined"), [(2, []), (0, ["refined"])])
def test_many_steps_of_the_finest_level_alone_are_fitted_once(monkeypatch, pilots, level, refined):
    """Thirteen are not refined and not fitted for the distribution; those of a cheaper level are."""
    kinds, calls = [], []

    def roll_out(pilots, schedule, memory, groups, *, law=None, classical=False):
        kinds.append("distribution" if law else "classical" if classical else "trajectories")
        return Rollout(
            schedule, memory, groups, (), (), np.full(8, 9.0 if law else 2.0 if classical else 1.0)
        )

    def refine(pilots, rollout, report, kept):
        calls.append("refined")
        return rollout

    monkeypatch.setattr(fit_entries, "roll_out", roll_out)
    monkeypatch.setattr(fit_entries, "refine", refine)
    schedule = Schedule(tuple(range(14)), level, ((),) * 13)
    fit_entries._final(pilots, schedule, Law(0.9, np.eye(2)), KeptParts(), lambda what: None)
    assert calls == refined and kinds.count("trajectories") == 1 + len(refined)
    assert ("distribution" in kinds) == bool(refined)


def test_the_distance_of_distributions_is_that_of_gaussians():
    """States of another mean and spread on each axis: the squared 2-Wasserstein distance of Gaussians is the sum of the
    squared differences of means and of standard deviations. Here the axes are the components."""
    rng = np.random.default_rng(3)
    reference = rng.normal(size=(500, 4))
    reference = (reference - reference.mean(0)) @ np.linalg.inv(
        np.linalg.cholesky(np.cov(reference.T, bias=True))
    ).T
    factors, shift = np.array([1.5, 0.5, 1.0, 1.0]), np.array([0.0, 0.3, 0.0, 0.4])
    law = Law(0.9, np.eye(4)[:, :2])
    found = law.distance(factors * reference + shift, reference)
    assert found == pytest.approx(np.sqrt((0.5**2 + 0.5**2 + 0.3**2 + 0.4**2) / 4), rel=1e-9)
    # The order of the states does not matter, unlike for errors.
    assert law.distance(reference[::-1], reference) == pytest.approx(0, abs=1e-9)


def test_the_remainder_counts_as_one_component():
    """Spreads along directions outside the components are compared by their root of the sum of squares."""
    reference = np.random.default_rng(4).normal(size=(500, 4))
    law = Law(0.9, np.eye(4)[:, :2])
    wider = reference * np.array([1, 1, 2, 2])
    rest = np.sqrt(np.mean(np.sum((reference - reference.mean(0))[:, 2:] ** 2, axis=1)))
    means = np.sum((wider.mean(0) - reference.mean(0)) ** 2)
    assert law.distance(wider, reference) == pytest.approx(np.sqrt((rest**2 + means) / 4), rel=1e-9)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_is_less_than_everything(share):
    term = ml.MultilevelTerm(lambda t, y, args: -y)
    with pytest.raises(ValueError, match=r"distribution=.*from 0 to below 1"):
        ml.fit_steps(term, np.linspace(0, 1, 9), jnp.ones((8, 1)), key=jr.key(0), distribution=share)
