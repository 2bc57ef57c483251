"""Steps fitted to the distribution of the states beside each pilot's own path."""

import importlib

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import mlem_jax as ml
from mlem_jax._calibration.fit_entries import _is_kept
from mlem_jax._calibration.fit_law import fit_features, Law
from mlem_jax._calibration.fit_rollout import Memory, Schedule
from mlem_jax._calibration.fit_step import everyone
from mlem_jax._calibration.searcher import Searcher


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
    ("error", "classical", "alone", "kept"),
    [(1.04, 9.0, True, True), (1.06, 9.0, True, False), (1.5, 9.0, False, True), (1.5, 1.2, False, False)],
)
def test_the_finest_level_alone_is_fitted_for_the_distribution_only_at_no_cost(error, classical, alone, kept):
    """The fit to the trajectories has an error of 1. Other steps keep the fit for the distribution unless the classical
    coefficients are better."""
    assert _is_kept(error, 1.0, classical, alone=alone) == kept


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_is_less_than_everything(share):
    term = ml.MultilevelTerm(lambda t, y, args: -y)
    with pytest.raises(ValueError, match=r"distribution=.*from 0 to below 1"):
        ml.fit_steps(term, np.linspace(0, 1, 9), jnp.ones((8, 1)), key=jr.key(0), distribution=share)
