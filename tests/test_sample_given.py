"""Samples that start from images, samples with known pixels, and plans that are made by hand or cut."""

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import assert_mean
from sampling_problems import constant, made_plan, networks, PROCESS, SHAPE

import mlem_jax as ml
from mlem_jax.diffusion import NoisePredictor, sample

KEY = jr.key(7)
MIDPOINT = ml.SystematicCoins(offset=0.5)


def drawn(levels, **settings):
    return sample(levels, **{"shape": SHAPE, "key": KEY, "progress": False, **settings})


# Plans made by hand.


def test_euler_by_hand_is_ddim():
    """Song, Meng & Ermon 2021: predict the clean image, and add the predicted noise again at the next level."""
    ts = np.asarray(PROCESS.grid(9), float)
    network = networks()[1]
    found = drawn([network], n=2, plan=ml.steps_plan(ts), save_at=[ts[0]])
    y = found.trajectories[:, 0]
    for s, following in zip(ts[:-1], ts[1:], strict=True):
        noise = np.asarray(network(jnp.asarray(y), jnp.asarray(s, jnp.float32)))
        y = ((y - s * noise) + following * noise).astype(np.float32)
    np.testing.assert_allclose(found.images, y, atol=1e-4)


@pytest.mark.slow
def test_steps_by_hand_have_the_order_of_their_method():
    """Halving the steps halves the error of Euler and quarters that of Adams and Bashforth, against 320 steps."""
    level = networks()[1:]
    errors = {}
    for method in (ml.EulerMaruyama(), ml.AdamsBashforth("log")):
        ends = [
            drawn(level, n=4, plan=ml.steps_plan(PROCESS.grid(n), method=method)).images
            for n in (20, 40, 320)
        ]
        errors[method.name] = [np.sqrt(np.mean((end - ends[-1]) ** 2)) for end in ends[:2]]
    euler, second = errors["MLEM"], errors["MLAB2"]
    assert 1.6 < euler[0] / euler[1] < 2.6 < second[0] / second[1]
    assert second[1] < 0.2 * euler[1]


def test_a_plan_by_hand_says_what_it_is(tmp_path):
    plan = ml.steps_plan(PROCESS.grid(5), method=ml.AdamsBashforth("log"), level=1)
    assert str(plan) == "AB2 on level 2 alone, 5 steps, without a calibration: the error is unknown"
    plan.save(tmp_path / "plan.npz")
    again = ml.AbstractPlan.load(tmp_path / "plan.npz")
    assert isinstance(again, ml.StepsPlan) and again.method == plan.method
    np.testing.assert_array_equal(again.ts, plan.ts)
    np.testing.assert_array_equal(
        drawn(networks(), n=2, plan=again).images, drawn(networks(), n=2, plan=plan).images
    )
    for ts in ([1.0], [1.0, 1.0], [1.0, 2.0, 1.5]):
        with pytest.raises(ValueError, match="steps_plan (was given ts of shape|needs strictly increasing)"):
            ml.steps_plan(ts)


# Plans that are cut.


@pytest.mark.slow
def test_a_cut_plan_keeps_its_firings():
    plan = made_plan(p=0.37, coins=MIDPOINT, steps=16)
    whole = plan.firing_pattern(key=jr.key(0))
    for first in (1, 9, 5):
        rest = plan.cut(float(plan.ts[first]) * 1.0001)
        np.testing.assert_array_equal(rest.ts, plan.ts[first:])
        np.testing.assert_array_equal(rest.firing_pattern(key=jr.key(0)), whole[first:])
    # And in a solve: constant levels 0 and 1 move by what the firings say.
    levels = constant(0.0, 1.0)
    found = drawn(levels, n=1, plan=plan, save_at=plan.ts[[first, 16]]).trajectories[0]
    term = ml.MultilevelTerm(lambda t, y, a: 0 * y, lambda t, y, a: 1 + 0 * y)
    end = diffrax.diffeqsolve(
        term,
        rest.solver(key=jr.key(0)),
        rest.grid[0],
        rest.grid[-1],
        None,
        jnp.asarray(found[0]),
        stepsize_controller=diffrax.StepTo(rest.grid),
    ).ys[0]
    np.testing.assert_allclose(end, found[1], atol=1e-4)


def test_a_cut_plan_costs_less_and_cannot_be_cut_away():
    plan = made_plan(levels=(0,), p=1.0, steps=10)
    assert plan.cut(float(plan.ts[4])).cost == pytest.approx(6 * plan.costs[0])
    assert np.isnan(plan.cut(1.0).error) and plan.cut(99.0).ts[0] == plan.ts[0]
    with pytest.raises(ValueError, match="no step that starts at or after 0.1; its last step starts at"):
        plan.cut(0.1)


# From images.


def test_at_noise_level_zero_the_image_comes_back(tmp_path):
    images = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
    for start_at in (0, 0.05, 0.1):
        found = drawn(networks(), n=3, plan=made_plan(), start_from=images, start_at=start_at)
        np.testing.assert_array_equal(found.images, images)
    drawn(networks(), n=3, plan=made_plan(), start_from=images, start_at=0, out=tmp_path)
    with np.load(tmp_path / "samples.npz") as file:
        np.testing.assert_array_equal(file["images"], images)
    with pytest.raises(ValueError, match="another run, which differs in start_from;"):
        drawn(networks(), n=3, plan=made_plan(), start_from=images + 1, start_at=0, out=tmp_path)


def test_sampling_starts_from_the_noised_image_and_takes_the_steps_that_are_left():
    """z-tests at 5 standard errors, 2,000 samples, of a network that predicts no noise: nothing moves."""
    plan = made_plan(levels=(0,), p=1.0, steps=6)
    image = np.array([1.0, -1.0, 0.5], np.float32)
    found = drawn(constant(0.0), n=2000, plan=plan, start_from=image, start_at=float(plan.ts[3]) + 0.01)
    noise = (found.images - image) / plan.ts[3]
    assert_mean(noise, 0.0)
    assert_mean(noise**2, 1.0)
    # With a constant prediction of the noise, the change of s is that from the fourth time on.
    moved = drawn(constant(1.0), n=2000, plan=plan, start_from=image, start_at=float(plan.ts[3]))
    np.testing.assert_allclose(moved.images - found.images, plan.ts[-1] - plan.ts[3], atol=1e-4)


# Known pixels.


@pytest.mark.parametrize("stochasticity", [0.0, 1.0])
def test_known_pixels_are_equal_and_the_networks_see_them_noised(stochasticity):
    known, mask = np.array([0.3, -0.7, 9.0], np.float32), np.array([True, True, False])
    plan = made_plan(p=0.4, coins=MIDPOINT, steps=8)
    settings = {"n": 400, "plan": plan, "stochasticity": stochasticity, "known": known, "mask": mask}
    found = drawn(networks(), save_at=plan.ts[[0, 4]], **settings)
    np.testing.assert_array_equal(found.images[:, :2], np.broadcast_to(known[:2], (400, 2)))
    assert np.isfinite(found.images).all() and found.images[:, 2].std() > 1e-3
    # On the way they are the known values with noise of the level's size: z-tests at 5 standard errors.
    for place, s in enumerate(plan.ts[[0, 4]]):
        noise = (found.trajectories[:, place, :2] - known[:2]) / s
        assert_mean(noise, 0.0)
        if not (stochasticity and place):  # There Euler's own error of the variance is more than that.
            assert_mean(noise**2, 1.0)


def test_unknown_pixels_depend_on_the_known_ones_through_the_network():
    def network(x, s):
        # All pixels are drawn towards the first one.
        return (x - jnp.broadcast_to(x[:1], x.shape)) / s

    levels = [NoisePredictor(network, PROCESS, "eps", "sigma")]
    plan, mask = made_plan(levels=(0,), p=1.0, steps=200), np.array([True, False, False])
    known = np.array([0.6, 0, 0], np.float32)
    found = drawn(levels, n=4, plan=plan, known=known, mask=mask, save_at=[plan.ts[0]])
    # The first pixel is y_1 = 0.6 + s e. So d = y_2 - y_1 obeys d' = d / s - e, or d / s = d_0 / s_0 - e log(s / s_0).
    start, s_0, s = found.trajectories[:, 0], plan.ts[0], plan.ts[-1]
    e = (start[:, :1] - 0.6) / s_0
    expected = 0.6 + s * e + s * ((start - start[:, :1]) / s_0 - e * np.log(s / s_0))
    np.testing.assert_allclose(found.images[:, 1:], expected[:, 1:], atol=0.02)
    np.testing.assert_array_equal(found.images[:, 0], np.float32(0.6))


def test_nothing_known_changes_nothing():
    plan = made_plan(p=0.4, coins=MIDPOINT)
    free = drawn(networks(), n=3, plan=plan).images
    found = drawn(networks(), n=3, plan=plan, known=np.full(SHAPE, 5.0), mask=np.zeros(SHAPE, bool)).images
    np.testing.assert_allclose(found, free, atol=1e-5)


def test_bad_images_say_what_is_expected():
    settings = {"n": 2, "plan": made_plan()}
    for changed, message in (
        ({"start_from": np.zeros(SHAPE)}, "start_from and start_at belong together"),
        ({"mask": np.ones(SHAPE, bool)}, "known and mask belong together"),
        (
            {"start_from": np.zeros((3, 3)), "start_at": 1.0},
            r"shape \(3, 3\) for 2 samples of shape \(3,\)",
        ),
        ({"start_from": np.zeros(SHAPE), "start_at": -1.0}, r"start_at=-1\.0; a noise level s of at least 0"),
        ({"start_from": np.zeros(SHAPE), "start_at": 0, "save_at": [1.0]}, "no steps of which save_at"),
    ):
        with pytest.raises(ValueError, match=message):
            drawn(networks(), **settings, **changed)
    assert jax.tree.leaves(drawn(networks(), n=1, plan=made_plan()).labels) == []
