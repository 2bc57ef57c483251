"""What `sample` refuses: folders of other runs, arguments that do not fit; and pictures of samples."""

import json

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import TINY, tiny_config
from matplotlib.image import imread
from problems import as_user
from sampling_problems import draw, made_plan, networks, PROCESS, SHAPE

from mlem_jax.diffusion import (
    EDM,
    Ladder,
    NoisePredictor,
    sample,
    save_grid,
    UNet,
)

QUIET = {"key": jr.key(7), "progress": False}


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
