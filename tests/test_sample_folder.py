"""What the folder of a run promises: never the images of another network, more samples later, one process at a time;
and the forms in which images are kept."""

import dataclasses
import errno
import re
import subprocess
import sys

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import stand_in, TINY
from matplotlib.image import imread
from problems import as_user
from sampling_problems import constant, draw, made_plan, PROCESS, SHAPE

import mlem_jax as ml
from mlem_jax.diffusion import Ladder, NoisePredictor, sample, save_images, VariancePreserving

PLAN = made_plan(levels=(0,), p=1.0, steps=2)
SETTINGS = {"n": 2, "shape": SHAPE, "plan": PLAN, "key": jr.key(7), "progress": False}


def level(network):
    return [NoisePredictor(network, PROCESS, "eps", "sigma")]


def closure(a):
    return level(lambda x, c: a * x)


def with_key(seed):
    def network(key, x, c):
        return x + jr.normal(key, x.shape)

    return level(eqx.Partial(network, jr.key(seed)))


def conditioned(a):
    return [NoisePredictor(lambda x, c: c * x, PROCESS, "eps", lambda s: a * s)]


@pytest.mark.parametrize(
    "make", [closure, *(pytest.param(f, marks=pytest.mark.slow) for f in (with_key, conditioned))]
)
def test_another_network_never_gets_the_images_of_the_first(tmp_path, make):
    first = sample(make(1), out=tmp_path, **SETTINGS).images
    np.testing.assert_array_equal(sample(make(1), out=tmp_path, **SETTINGS).images, first)
    with pytest.raises(ValueError, match="another run, which differs in levels;"):
        sample(make(2), out=tmp_path, **SETTINGS)
    assert np.abs(sample(make(2), **SETTINGS).images - first).max() > 1e-3


def test_a_network_that_cannot_be_told_apart_is_not_kept(tmp_path):
    lock = __import__("threading").Lock()
    levels = level(lambda x, c: x if lock else c)
    with pytest.raises(
        ValueError, match=r"another network could continue them.*type _thread.lock.*eqx.Partial"
    ):
        sample(levels, out=tmp_path / "run", **SETTINGS)
    assert not (tmp_path / "run").exists()
    assert sample(levels, **SETTINGS).images.shape == (2, *SHAPE)


def test_a_plan_of_another_method_does_not_continue_a_run(tmp_path):
    plan = made_plan(coins=ml.SystematicCoins(offset=0.5))
    draw(2, plan=plan, out=tmp_path, stochasticity=0.0)
    other = dataclasses.replace(plan, method=ml.AdamsBashforth())
    with pytest.raises(ValueError, match="differs in plan;"):
        draw(2, plan=other, out=tmp_path, stochasticity=0.0)


# Plans.


@pytest.fixture(scope="module")
def ladder():
    bare = Ladder(TINY.networks(), TINY, {}, {})
    return dataclasses.replace(bare, calibrations={"ode": stand_in(bare), "sde": stand_in(bare, sde=True)})


@pytest.mark.slow
def test_a_plan_is_only_for_the_levels_and_the_equation_that_were_calibrated(ladder, tmp_path):
    plan = ladder.calibrations["ode"].plan(budget=3)
    settings = {"n": 1, "key": jr.key(0), "progress": False, "out": tmp_path / "run"}
    trained_otherwise = dataclasses.replace(TINY, process=VariancePreserving(s_max=70.0))
    others = [
        (ladder, {"stochasticity": 1.0}, "number 1, 2 differ"),
        (ladder, {"stochasticity": 0.5}, "number 1, 2 differ"),
        (dataclasses.replace(ladder, config=trained_otherwise), {}, "number 1, 2 differ"),
        (dataclasses.replace(ladder, networks=ladder.networks[::-1]), {}, "number 1, 2 differ"),
        (
            dataclasses.replace(ladder, networks=(*ladder.networks, ladder.networks[1])),
            {},
            "2 levels and is used with 3",
        ),
        (ladder.predictors(), {"shape": (4, 4, 2)}, "a state PyTreeDef"),
    ]
    for levels, changed, message in others:
        with pytest.raises(
            ValueError, match=f"This plan was made for.*{message}.*Make a plan from a calibration"
        ):
            sample(levels, plan=plan, **{**settings, **changed})
    saved = ml.Plan.load(_saved(plan, tmp_path / "plan.npz"))
    with pytest.raises(ValueError, match="This plan was made for"):
        sample(ladder, plan=saved, stochasticity=1.0, **settings)
    assert not (tmp_path / "run").exists()
    with (
        as_user(),
        pytest.raises(TypeError, match=r"plan of type Calibration; write plan=calibration\.plan\(budget=8\)"),
    ):
        sample(ladder, plan=ladder.calibrations["ode"], **settings)


def _saved(plan, path):
    plan.save(path)
    return path


@pytest.mark.slow
def test_a_plan_fits_the_ladder_that_it_was_made_for(ladder):
    for kind, stochasticity in (("ode", 0), ("sde", 1)):
        plan = ladder.calibrations[kind].plan(budget=3)
        found = sample(ladder, n=1, plan=plan, key=jr.key(0), stochasticity=stochasticity, progress=False)
        assert np.isfinite(found.images).all()


# More samples later.


@pytest.mark.slow
def test_a_run_grows_and_keeps_what_it_had(tmp_path, monkeypatch):
    labels = jnp.broadcast_to(jnp.arange(11.0)[:, None], (11, 3))
    few = draw(5, batch_size=4, labels=labels[:5], out=tmp_path)
    # As if these had been drawn otherwise, to see that they are kept.
    with np.load(tmp_path / "samples.npz") as file:
        marked = {name: file[name] for name in file.files}
    marked["images"] = marked["images"] + 100
    np.savez(tmp_path / "samples.npz", **marked)
    many = draw(11, batch_size=4, labels=labels, out=tmp_path)
    np.testing.assert_array_equal(many.images[:5], few.images + 100)
    np.testing.assert_allclose(many.images[5:], draw(11, labels=labels).images[5:], rtol=0, atol=1e-5)
    with np.load(tmp_path / "samples.npz") as file:
        assert sorted(file.files) == ["images", "labels"]
        np.testing.assert_array_equal(file["images"], many.images)
        np.testing.assert_array_equal(file["labels"], labels)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.json", "samples.npz"]
    # Fewer are the first of them, and nothing is drawn or written.
    before = (tmp_path / "samples.npz").read_bytes()
    monkeypatch.setattr("mlem_jax.diffusion._sampling.sample.draw_batches", None)
    again = draw(3, labels=labels[:3], out=tmp_path)
    np.testing.assert_array_equal(again.images, many.images[:3])
    assert (tmp_path / "samples.npz").read_bytes() == before
    with pytest.raises(ValueError, match="another run, which differs in labels;"):
        draw(3, labels=labels[:3] + 1, out=tmp_path)
    with pytest.raises(ValueError, match="another run, which differs in labels;"):
        draw(12, labels=jnp.ones((12, 3)), out=tmp_path)


@pytest.mark.slow
def test_a_run_that_was_stopped_while_it_grew_goes_on(tmp_path):
    draw(8, batch_size=4, out=tmp_path)
    whole = draw(20, batch_size=4).images
    (tmp_path / "batches").mkdir()
    np.savez(tmp_path / "batches" / "00000008-00000012.npz", images=whole[8:12] + 100)
    # The first call does not ask for them, and keeps them.
    assert len(draw(8, batch_size=4, out=tmp_path).images) == 8
    found = draw(20, batch_size=4, out=tmp_path).images
    np.testing.assert_array_equal(found[8:12], whole[8:12] + 100)
    np.testing.assert_allclose(found[12:], whole[12:], rtol=0, atol=1e-5)


# Forms of images.


def test_bytes_are_the_numbers_rounded(tmp_path):
    numbers = draw(4, plan=PLAN, stochasticity=0.0).images
    found = draw(4, plan=PLAN, stochasticity=0.0, as_bytes=True, out=tmp_path).images
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, np.clip(127.5 + 127.5 * numbers, 0, 255), atol=0.501)
    with np.load(tmp_path / "samples.npz") as file:
        np.testing.assert_array_equal(file["images"], found)
    with pytest.raises(ValueError, match="differs in format;"):
        draw(4, plan=PLAN, stochasticity=0.0, out=tmp_path)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (2, 3, 3)])
def test_single_pictures(tmp_path, shape):
    images = np.random.default_rng(0).uniform(-1.2, 1.2, (3, *shape))
    save_images(tmp_path / "png", images[:2])
    kept = (tmp_path / "png" / "00000001.png").read_bytes()
    save_images(tmp_path / "png", images[[0, 0, 2]])
    assert sorted(p.name for p in (tmp_path / "png").iterdir()) == [f"0000000{i}.png" for i in range(3)]
    assert (tmp_path / "png" / "00000001.png").read_bytes() == kept
    for i, image in enumerate(images):
        expected = (np.clip(image, -1, 1) + 1) / 2
        shown = imread(tmp_path / "png" / f"0000000{i}.png")
        assert shown.shape == ((2, 3, 3) if shape[2:] == (3,) else (2, 3))
        np.testing.assert_allclose(shown, expected.reshape(shown.shape), atol=0.5 / 255 + 1e-6)


def test_samples_print_in_a_line():
    found = draw(4, plan=PLAN, stochasticity=0.0, labels=jnp.ones((4, 3)))
    assert repr(found).count("\n") <= 3 and len(repr(found)) < 300
    assert re.match(
        r"Samples\(images=float32 \(4, 3\) from .*, indices=0 to 3, labels=float32 \(4, 3\)\)", repr(found)
    )


def test_integers_of_numpy_are_integers():
    found = sample(
        constant(1.0), **{**SETTINGS, "n": np.int64(2)}, batch_size=np.int32(1), coin_group=np.int8(3)
    )
    assert found.images.shape == (2, *SHAPE)


# Places.

HOLD = """
import sys
from mlem_jax.diffusion._sampling.run_folder import RunFolder
with RunFolder(sys.argv[1], {}).lock(shared=False):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_two_processes_do_not_draw_into_one_folder(tmp_path):
    draw(2, out=tmp_path)
    (tmp_path / "run.json").rename(tmp_path.parent / "kept.json")
    (tmp_path / "samples.npz").unlink()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        (tmp_path.parent / "kept.json").rename(tmp_path / "run.json")
        with pytest.raises(
            BlockingIOError, match="Another process is drawing samples into .*; nothing was written"
        ):
            draw(2, out=tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
        other.kill()
    # However it ended, the folder is free again.
    assert len(draw(2, out=tmp_path).images) == 2


def test_a_place_that_cannot_be_written_is_named_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("mlem_jax.diffusion._sampling.sample.draw_batches", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OSError, match=r"Cannot write to .*/file/run: Not a directory\. Choose another folder"
    ):
        draw(2, out=tmp_path / "file" / "run")

    def read_only(**settings):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", read_only)
    with pytest.raises(
        OSError, match=r"Cannot write to .*/run: Read-only file system\. Choose another folder"
    ):
        draw(2, out=tmp_path / "run")
