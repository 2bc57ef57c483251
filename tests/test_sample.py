"""What `sample` draws, in what groups and batches, what it writes, and what it refuses. Devices, processes and
kill -9 are in test_sample_devices.py, the commands in test_cli_sample.py."""

import errno
import json
import os

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import randomised, TINY, tiny_config
from matplotlib.image import imread
from problems import as_user, assert_mean
from sampling_problems import constant, draw, made_plan, networks, PROCESS, SHAPE

import mlem_jax as ml
from mlem_jax.diffusion import (
    EDM,
    FlowMatching,
    Guided,
    Ladder,
    NoisePredictor,
    sample,
    sampling_terms,
    save_grid,
    UNet,
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
    message = (
        r"No space is left to write .*run/batches/00000012-00000016\.npz.*make room and run the same again"
    )
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


def test_a_damaged_result_is_named(tmp_path):
    draw(4, batch_size=4, out=tmp_path / "run")
    path = tmp_path / "run" / "samples.npz"
    whole = path.read_bytes()
    for part in (0.0, 0.5, 0.9):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(
            ValueError, match=r"samples\.npz is damaged .* Move it away and run the same again"
        ):
            draw(4, batch_size=4, out=tmp_path / "run")
    path.unlink()
    draw(4, batch_size=4, out=tmp_path / "run")
    assert path.read_bytes() == whole


def test_a_folder_of_other_files_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("mlem_jax.diffusion._sampling.sample.draw_batches", None)
    (tmp_path / "samples.npz").write_text("mine")
    (tmp_path / "notes").mkdir()
    with pytest.raises(FileExistsError, match=r"not of a sampling run \(notes, samples.npz\); nothing was"):
        draw(out=tmp_path)
    with pytest.raises(FileExistsError, match="is a file"):
        draw(out=tmp_path / "samples.npz")
    assert (tmp_path / "samples.npz").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


OTHERS = {
    "key": {"key": jr.key(8)},
    "plan": {"plan": made_plan(p=0.5)},
    "stochasticity": {"stochasticity": 0.5},
    "args": {"args": jnp.ones(3)},
    "labels": {"labels": jnp.ones((4, 3))},
    "save_at": {"save_at": [1.0]},
    "coin_group": {"coin_group": 4},
}


def test_a_folder_of_another_run_is_refused(tmp_path, monkeypatch):
    draw(4, batch_size=4, out=tmp_path)
    monkeypatch.setattr("mlem_jax.diffusion._sampling.sample.draw_batches", None)
    for name, settings in OTHERS.items():
        with pytest.raises(ValueError, match=rf"another run, which differs in {name}; nothing was written"):
            draw(**{"n": 4, "out": tmp_path, **settings})
    other = [NoisePredictor(p.network, EDM(s_max=9.0), "eps", "sigma") for p in networks()]
    less = [eqx.tree_at(lambda p: p.network.weight, p, p.network.weight + 1e-6) for p in networks()]
    for levels in (other, less):
        monkeypatch.setattr("sampling_problems.networks", lambda levels=levels: levels)
        with pytest.raises(ValueError, match="differs in levels;"):
            draw(4, out=tmp_path)
    (tmp_path / "run.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="differs in everything"):
        draw(4, out=tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is not a run's description"):
        draw(4, out=tmp_path)


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 2, 3, 1), (5, 2, 3, 3)])
def test_a_grid_shows_every_pixel(tmp_path, shape):
    images = np.random.default_rng(0).uniform(-1.2, 1.2, shape)
    save_grid(tmp_path / "a.png", images)
    shown = imread(tmp_path / "a.png")
    assert shown.shape[:2] == (4, 9) and [p.name for p in tmp_path.iterdir()] == ["a.png"]
    expected = np.broadcast_to(np.clip(images.reshape(5, 2, 3, -1), -1, 1), (5, 2, 3, 3)) / 2 + 0.5
    for i in range(5):
        row, column = divmod(i, 3)
        place = shown[2 * row : 2 * row + 2, 3 * column : 3 * column + 3, :3]
        np.testing.assert_allclose(place, expected[i], atol=0.5 / 255 + 1e-6)
    assert not shown[2:, 6:, :3].any()
    save_grid(tmp_path / "a.png", images, columns=5)
    assert imread(tmp_path / "a.png").shape[:2] == (2, 15)


# Bad input.

GRID = made_plan()
BAD = {
    "no samples": ({"n": 0}, "n=0; an integer of at least 1"),
    "half a sample": ({"n": 2.5}, r"n=2\.5"),
    "batch": ({"batch_size": True}, "batch_size=True"),
    "group": ({"coin_group": -1}, "coin_group=-1"),
    "key": ({"key": 3}, r"key=3; write key=jax\.random\.key\(3\)"),
    "both": ({"args": jnp.ones(3), "labels": jnp.ones((4, 3))}, "not both"),
    "labels": ({"labels": jnp.ones((3, 3))}, r"shape \(3, 3\) for n=4 samples.*shape \(4, \.\.\.\)"),
    "one label": ({"labels": jnp.asarray(1)}, r"shape \(\) for n=4"),
    "plan": ({"plan": made_plan(levels=(0, 2))}, "plan uses level 3 and there are 2 levels"),
    "early": (
        {"save_at": [11.0, 1.0]},
        r"save_at=\[11\.0, 1\.0\]; decreasing values of s between 10 and 0\.1",
    ),
    "order": ({"save_at": [1.0, 2.0]}, "decreasing values"),
    "none": ({"save_at": []}, "decreasing values"),
    "stochasticity": ({"stochasticity": -1.0}, r"stochasticity=-1\.0"),
}


@pytest.mark.parametrize("settings, message", BAD.values(), ids=BAD.keys())
def test_bad_arguments(tmp_path, settings, message):
    with as_user(), pytest.raises(ValueError, match=message):
        draw(**{"n": 4, "out": tmp_path / "run", **settings})
    assert not (tmp_path / "run").exists()


def test_levels_that_do_not_fit(tmp_path):
    settings = {"n": 4, "plan": GRID, "out": tmp_path / "run", **QUIET}
    ladder = Ladder(TINY.networks(), TINY, {}, {})
    unets = tiny_config().networks()
    wide = UNet((8, 8, 1), 4, folds=(4,), multipliers=(1,), blocks=(1,), key=jr.key(0))
    labelled = UNet((4, 4, 1), 4, folds=(4,), multipliers=(1,), blocks=(1,), classes=3, key=jr.key(0))

    def predictors(*unets):
        return [NoisePredictor(u, PROCESS, "v") for u in unets]

    cases = [
        (ladder, (4, 4, 1), r"A ladder knows the shape of its images, \(4, 4, 1\); leave out shape"),
        (networks(), None, r"needs the shape of one sample; write for example shape="),
        (unets, (4, 4, 1), r"given tuple\. Write NoisePredictor\("),
        (networks()[0], SHAPE, r"a list of NoisePredictors, cheapest first, and was given NoisePredictor"),
        (predictors(unets[0], wide), (4, 4, 1), r"Level 2 does not fit: .* images of shape \(8, 8, 1\)"),
        (predictors(unets[0], labelled), (4, 4, 1), "Level 2 does not fit: This UNet needs a label"),
    ]
    for levels, shape, message in cases:
        with as_user(), pytest.raises(ValueError, match=message):
            sample(levels, shape=shape, **settings)
    for images in (np.zeros((0, 2, 2)), np.zeros((3, 2, 2, 2)), np.zeros((2, 2))):
        with as_user(), pytest.raises(ValueError, match="save_grid was given images of shape"):
            save_grid(tmp_path / "a.png", images)
    assert not list(tmp_path.iterdir())
