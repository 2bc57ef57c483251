"""What `sample` draws, in what groups and batches, what it writes, and what it refuses. Devices, processes and
kill -9 are in test_sample_devices.py, the commands in test_cli_sample.py."""

import errno
import os

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import randomised, TINY
from problems import assert_mean
from sampling_problems import constant, draw, made_plan, networks, PROCESS, SHAPE

import mlem_jax as ml
from mlem_jax.diffusion import (
    FlowMatching,
    Guided,
    Ladder,
    NoisePredictor,
    sample,
    sampling_terms,
)
from mlem_jax.diffusion._sampling.run_folder import RunFolder

QUIET = {"key": jr.key(7), "progress": False}


@pytest.fixture(scope="module")
def twenty():
    """The samples that many tests are about, drawn four at a time."""
    return draw(20, batch_size=4).images


# What is drawn.


@pytest.mark.parametrize("coins", [ml.SystematicCoins(offset=0.5), None], ids=["midpoint", "one level"])
def test_samples_are_what_diffrax_makes_of_their_noise(coins):
    plan = made_plan(coins=coins) if coins else made_plan(levels=(1,), p=1.0)
    found = sample(networks(), n=5, shape=SHAPE, plan=plan, save_at=plan.grid, **QUIET)
    assert found.images.shape == (5, *SHAPE) and found.trajectories.shape == (5, len(plan.ts), *SHAPE)
    np.testing.assert_array_equal(found.indices, np.arange(5))

    @jax.vmap
    def solve(y0):
        return diffrax.diffeqsolve(
            plan.terms(sampling_terms(*networks())),
            plan.solver(key=jr.key(0)),
            plan.grid[0],
            plan.grid[-1],
            None,
            y0,
            stepsize_controller=diffrax.StepTo(plan.grid),
            saveat=diffrax.SaveAt(t0=True, steps=True),
            max_steps=len(plan.ts) - 1,
        ).ys

    expected = solve(jnp.asarray(found.trajectories[:, 0]))
    np.testing.assert_allclose(found.trajectories, expected, atol=1e-5)
    np.testing.assert_array_equal(found.images, found.trajectories[:, -1])
    # Pure noise, another for each: z-tests of mean and variance need more of them.
    assert len(np.unique(found.trajectories[:, 0])) == found.trajectories[:, 0].size


@pytest.mark.slow
def test_noise_of_the_start_and_of_the_path_have_their_variances():
    """Without drift: z-tests at 5 standard errors, 2,000 samples."""
    plan = made_plan(levels=(0,), p=1.0, steps=6)
    found = sample(constant(0.0), n=2000, shape=SHAPE, plan=plan, stochasticity=1.0, save_at=[10.0], **QUIET)
    noise = found.trajectories[:, 0] / plan.ts[0]
    steps = (found.images - found.trajectories[:, 0]) / np.sqrt(np.sum(2 * plan.ts[:-1] * -np.diff(plan.ts)))
    for drawn in (noise, steps):
        assert_mean(drawn, 0.0)
        assert_mean(drawn**2, 1.0)
    # Nothing is drawn twice: not for start and path, for neighbours, for the entries of one sample.
    assert_mean(noise * steps, 0.0)
    assert_mean(steps[1:] * steps[:-1], 0.0)
    assert_mean(noise[1:] * noise[:-1], 0.0)
    assert_mean(steps[:, 1:] * steps[:, :-1], 0.0)


@pytest.mark.slow
def test_coins_are_shared_in_groups_and_independent_between_them():
    """With constant levels 0 and 1 a sample moves by what its coins say: z-test of the mean, 200 groups of 3."""
    plan = made_plan(p=0.4)
    found = sample(constant(0.0, 1.0), n=600, shape=(), plan=plan, save_at=[10.0], coin_group=3, **QUIET)
    moved = (found.images - found.trajectories[:, 0]).reshape(200, 3)
    np.testing.assert_allclose(moved, np.broadcast_to(moved[:, :1], moved.shape), atol=1e-4)
    assert len(np.unique(moved[:, 0].round(3))) > 50
    assert_mean(moved[:, 0], PROCESS.s_min - PROCESS.s_max)
    assert_mean((moved[1:, 0] - moved[:, 0].mean()) * (moved[:-1, 0] - moved[:, 0].mean()), 0.0)


@pytest.mark.parametrize("n, batch_size", [(7, 64), (16, 5), (64, 64)])
def test_a_sample_does_not_depend_on_how_many_are_drawn_or_in_which_batches(twenty, n, batch_size):
    found = draw(n, batch_size=batch_size).images
    count = min(n, len(twenty))
    np.testing.assert_allclose(found[:count], twenty[:count], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_other_keys_and_groups_make_other_samples(twenty):
    assert np.all(draw(20, batch_size=4, key=jr.key(8)).images != twenty)
    other = draw(20, batch_size=4, coin_group=4).images
    np.testing.assert_allclose(other[:4], twenty[:4], atol=1e-5)
    assert np.all(np.abs(other[4:] - twenty[4:]).max(axis=1) > 1e-3)
    # With coins that draw nothing, groups are no matter.
    plan = made_plan(coins=ml.SystematicCoins(offset=0.5))
    few, many = (draw(8, plan=plan, coin_group=g, batch_size=4).images for g in (2, 64))
    np.testing.assert_array_equal(few, many)


def test_a_device_holds_no_more_than_a_batch():
    shapes = []

    def level(x, s):
        def count(x):
            shapes.append(x.shape)
            return np.asarray(x)

        return jax.pure_callback(
            count, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="broadcast_all"
        )

    levels = [NoisePredictor(level, PROCESS, "eps")]
    plan = made_plan(levels=(0,), p=1.0, steps=2)
    sample(levels, n=11, shape=SHAPE, plan=plan, batch_size=4, **QUIET)
    assert len(shapes) == 3 * 2 and set(shapes) == {(4, *SHAPE)}


def test_labels_go_to_their_samples_and_args_to_all():
    levels = [NoisePredictor(lambda x, c, label: jnp.full_like(x, label), PROCESS, "eps")]
    plan = made_plan(levels=(0,), p=1.0, steps=2)
    settings = {"shape": SHAPE, "plan": plan, "save_at": [10.0], "batch_size": 2, **QUIET}
    labels = np.arange(5) % 3
    for given, expected in (({"labels": labels}, labels), ({"args": jnp.asarray(2)}, np.full(5, 2))):
        found = sample(levels, n=5, **given, **settings)
        moved = (found.images - found.trajectories[:, 0]) / (PROCESS.s_min - PROCESS.s_max)
        np.testing.assert_allclose(moved, np.broadcast_to(expected[:, None], moved.shape), atol=1e-5)


@pytest.mark.slow
def test_guided_levels_of_different_processes():
    def network(x, c, label):
        return jnp.full_like(x, label)

    levels = [
        NoisePredictor(Guided(network, scale=scale, null=0), process, "eps")
        for scale, process in ((2.0, FlowMatching()), (3.0, PROCESS))
    ]
    plan = made_plan(p=1.0, coins=ml.SystematicCoins(offset=0.5), steps=4)
    found = sample(levels, n=3, shape=SHAPE, plan=plan, labels=np.arange(3), save_at=[10.0], **QUIET)
    moved = (found.images - found.trajectories[:, 0]) / (PROCESS.s_min - PROCESS.s_max)
    np.testing.assert_allclose(moved, np.outer([0, 3, 6], np.ones(3)), atol=1e-4)


@pytest.mark.slow
def test_a_ladder_is_enough():
    ladder = Ladder(tuple(randomised(n) for n in TINY.networks()), TINY, {}, {})
    plan = made_plan(levels=(1,), p=1.0, process=TINY.process)
    found = sample(ladder, n=3, plan=plan, **QUIET)
    same = sample(list(ladder.predictors()), n=3, plan=plan, shape=TINY.shape, **QUIET)
    assert found.images.shape == (3, *TINY.shape) and found.images.std() > 0.01
    np.testing.assert_array_equal(found.images, same.images)


# Networks that fail.


@pytest.mark.slow
@pytest.mark.parametrize("kept, guilty", [((0, 1), "Level 2"), ((1,), "Level 2"), ((0,), "Level 1")])
def test_a_value_that_is_not_finite_names_level_step_and_time(tmp_path, kept, guilty):
    plan = made_plan(levels=kept, p=1.0, coins=ml.SystematicCoins(offset=0.5))

    def level(bad):
        # Only for labels of at least 5, and only below s = 3.
        def network(x, s, label):
            return jnp.where((label >= 5) & (s < 3) & bad, jnp.inf, 1.0) * jnp.ones_like(x)

        return NoisePredictor(network, PROCESS, "eps", "sigma")

    levels = [level(kept == (0,)), level(True)]
    step = int(np.argmax(plan.ts < 3))
    message = (
        rf"^{guilty} returned a value that is not finite, for sample 5 in step {step + 1} of 12, at s = "
    )
    message += rf"{plan.ts[step]:.4g}\. "
    settings = {"shape": SHAPE, "plan": plan, "labels": np.arange(8), "batch_size": 4, **QUIET}
    with pytest.raises(FloatingPointError, match=message):
        sample(levels, n=8, out=tmp_path / "run", **settings)
    # What came before is kept.
    assert [p.name for p in (tmp_path / "run" / "batches").iterdir()] == ["00000000-00000004.npz"]


def test_an_overflow_without_a_guilty_level():
    plan = made_plan(levels=(0,), p=1.0)
    with pytest.raises(
        FloatingPointError, match="Sample 0 overflowed in step 2 of 12, at s = 7.505, although"
    ):
        sample(constant(1e38), n=2, shape=SHAPE, plan=plan, **QUIET)


# Files.


def test_other_batches_continue_a_run(twenty, tmp_path):
    folder = RunFolder(tmp_path / "run", {})
    draw_into = {"out": tmp_path / "run"}
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(OSError), _full_after(2):
        draw(20, batch_size=4, **draw_into)
    assert folder.done() == [(0, 4), (4, 8)]
    # Samples 2 and 3 are lost, the others are kept: batches of 5 fill the gap.
    os.rename(folder.path / "batches" / "00000000-00000004.npz", tmp_path / "whole.npz")
    with np.load(tmp_path / "whole.npz") as file:
        folder.add(0, 2, {"images": file["images"][:2] + 100})
    found = draw(20, batch_size=5, **draw_into).images
    np.testing.assert_allclose(found[:2], twenty[:2] + 100, atol=1e-4)
    np.testing.assert_allclose(found[2:], twenty[2:], rtol=0, atol=1e-5)


class _full_after:
    """The disk is full after so many files of batches."""

    def __init__(self, count):
        self.count = count

    def __enter__(self):
        self.real = os.fsync

        def fsync(handle):
            # One more, for run.json.
            self.count -= 1
            if self.count < -1:
                raise OSError(errno.ENOSPC, "No space left on device")

        os.fsync = fsync

    def __exit__(self, *error):
        os.fsync = self.real


def test_a_full_disk_loses_nothing(twenty, tmp_path):
    message = r"No space .*run/batches/00000012-00000016\.npz.*make room and run the same command again"
    with pytest.raises(OSError, match=message), _full_after(3):
        draw(20, batch_size=4, out=tmp_path / "run")
    names = sorted(p.name for p in (tmp_path / "run" / "batches").iterdir())
    assert names == ["00000000-00000004.npz", "00000004-00000008.npz", "00000008-00000012.npz"]
    # And when the result has no room either, with all batches there.
    with pytest.raises(OSError, match=r"No space is left to write .*samples\.npz"), _full_after(1):
        draw(20, batch_size=4, out=tmp_path / "run")
    assert len(list((tmp_path / "run" / "batches").iterdir())) == 5
    np.testing.assert_array_equal(draw(20, batch_size=4, out=tmp_path / "run").images, twenty)


def test_a_damaged_batch_is_named(twenty, tmp_path):
    with pytest.raises(OSError), _full_after(2):
        draw(20, batch_size=4, out=tmp_path / "run")
    path = tmp_path / "run" / "batches" / "00000004-00000008.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        ValueError, match=r"00000004-00000008\.npz is damaged .* only its samples are drawn anew"
    ):
        draw(20, batch_size=4, out=tmp_path / "run")
    path.unlink()
    np.testing.assert_array_equal(draw(20, batch_size=4, out=tmp_path / "run").images, twenty)


# Bad input.
