"""The commands `calibrate` and `sample` with networks of others: two commands from files to pictures, single steps,
decoded latents, and a sentence for every file that will not do."""

import json
import pickle
import re
import shutil
from typing import get_args

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from matplotlib.image import imread
from pretrained_problems import write_folder, write_unet
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import mlem_jax as ml
from mlem_jax import diffusion
from mlem_jax._cli import app as _cli
from mlem_jax._cli.networks import Family
from mlem_jax.diffusion import load_decoder, load_network, PredictorLadder, sample
from mlem_jax.diffusion._pretrained.load import _FINDERS

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    write_unet(folder / "small", 4)
    write_unet(folder / "large", 8, seed=1)
    write_unet(folder / "latents", 4, seed=2, side=2, in_channels=4, out_channels=4)
    write_unet(folder / "labels", 4, num_class_embeds=3)
    np.savez(folder / "names.npz", weight=np.ones(3))
    write_folder(folder / "decoder", "decoder")
    return folder


def test_the_option_knows_the_families_of_the_loader():
    """`--help` lists them without importing `mlem_jax.diffusion`."""
    options, _ = get_args(get_args(Family)[0])
    assert get_args(options) == tuple(_FINDERS)


def run(*arguments):
    result = CliRunner().invoke(_cli.app, list(map(str, arguments)), env={"COLUMNS": "300"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, re.sub(r"[\s│]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", result.output))


def images(folder, name="samples"):
    with np.load(folder / f"{name}.npz") as file:
        return file["images"]


@pytest.mark.slow
def test_two_commands_from_files_to_pictures(files, tmp_path):
    pair = ("--network", files / "small", "--network", files / "large")
    code, text = run(
        "calibrate", *pair, "--budget", 4, "--steps", 8, "--pilots", 4, "--out", tmp_path / "found"
    )
    assert code == 0, text
    names = ["calibration_ode.npz", "calibration_ode_2.npz"]
    assert sorted(p.name for p in (tmp_path / "found").iterdir()) == names
    (command,) = re.findall("Draw with it: python -m mlem_jax (.*) --out FOLDER", text)
    code, text = run(*command.split(), "--n", 3, "--out", tmp_path / "out")
    assert code == 0, text
    assert imread(tmp_path / "out" / "samples.png").shape[:2] == (8, 8)
    # The same in Python.
    ladder = PredictorLadder([load_network(files / name) for name in ("small", "large")])
    ladder = ladder.load_calibrations(tmp_path / "found")
    found = sample(ladder, n=3, plan=ladder.plan(budget=4), key=jr.key(0), progress=False)
    np.testing.assert_allclose(images(tmp_path / "out"), found.images, atol=1e-5)
    # One method alone, in a file.
    single = tmp_path / "single.npz"
    code, text = run(
        "calibrate", *pair, "--steps", 8, "--pilots", 4, "--budget", 4, "--order", 2, "--out", single
    )
    assert code == 0 and ml.Calibration.load(single).method == ml.AdamsBashforth("log"), text
    code, text = run(
        "sample", *pair, "--n", 1, "--budget", 4, "--calibration", single, "--out", tmp_path / "b"
    )
    assert code == 0, text
    # Another pair does not have this calibration.
    other = ("--network", files / "small", "--network", write_unet(tmp_path / "other", 8, seed=3))
    for place in (tmp_path / "found", single):
        code, text = run("sample", *other, "--calibration", place, "--out", tmp_path / "c")
        assert code == 2 and "of which number 2 differ" in text and "calibrate --network" in text, text
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {"pilots": 16, "steps": 64, "fit_pilots": 0}),
        (("--sde",), {"pilots": 16, "steps": 128, "fit_pilots": 0}),
        (("--pilots", 8, "--fit-pilots", 32), {"pilots": 8, "steps": 64, "fit_pilots": 32}),
    ],
)
def test_networks_of_others_are_measured_quickly_unless_options_say_more(
    files, tmp_path, monkeypatch, options, expected
):
    seen = {}

    def measure(ladder, **settings):
        seen.update(settings)
        raise OSError("enough")

    monkeypatch.setattr(diffusion, "calibrate_ladder", measure)
    pair = ("--network", files / "small", "--network", files / "large")
    # The second method, for which steps are fitted, if they are.
    code, text = run("calibrate", *pair, *options, "--order", 2, "--out", tmp_path / "found")
    assert code == 1 and {name: seen[name] for name in expected} == expected, text


@pytest.mark.slow
def test_steps_by_hand_need_no_calibration(files, tmp_path):
    """Euler's two steps on the probability flow, written out, from the samples' own noise."""
    code, text = run(
        "sample",
        *("--network", files / "large", "--steps", 2, "--spacing", "log", "--n", 2, "--out", tmp_path / "a"),
    )
    assert code == 0 and "Euler on level 1 alone, 2 steps" in text, text
    predictor = load_network(files / "large")
    s = np.geomspace(predictor.process.s_max, predictor.process.s_min, 3)
    found = sample(
        [predictor], n=2, shape=(4, 4, 3), plan=ml.steps_plan(s), key=jr.key(0), save_at=s[:1], progress=False
    )
    y = jnp.asarray(found.trajectories[:, 0])
    for here, there in zip(s, s[1:], strict=False):
        alpha = 1 / np.sqrt(1 + here**2)
        y = y + (there - here) * predictor(alpha * y, jnp.asarray(here, jnp.float32))
    np.testing.assert_allclose(images(tmp_path / "a"), y, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_latents_are_decoded(files, tmp_path):
    common = ("sample", "--network", files / "latents", "--steps", 2, "--n", 3, "--batch-size", 2)
    code, text = run(*common, "--decoder", files / "decoder", "--out", tmp_path / "a", "--format", "uint8")
    assert code == 0, text
    latents, found = images(tmp_path / "a"), images(tmp_path / "a", "decoded")
    decoder = load_decoder(files / "decoder")
    expected = np.clip(jax.lax.map(decoder, jnp.asarray(latents)), -1, 1)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found / 127.5 - 1, expected, atol=0.6 / 127.5)
    assert imread(tmp_path / "a" / "samples.png").shape[:2] == (8, 8)
    # Without it there are no pictures, and nothing is lost.
    code, text = run(*common, "--out", tmp_path / "b")
    assert code == 0 and "if they are latents, write --decoder" in text, text
    np.testing.assert_allclose(images(tmp_path / "b"), latents, atol=1e-6)
    code, text = run(
        "sample",
        "--network",
        files / "small",
        "--steps",
        2,
        "--decoder",
        files / "decoder",
        "--out",
        tmp_path / "c",
    )
    assert code == 2 and "takes latents of 4 channels, and the levels make arrays of 4 x 4 x 3" in text, text
    assert not (tmp_path / "c").exists()


class Bomb:
    """What a pickle may hold: a program. Opened, it would leave a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def _truncate(folder, executed):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def _other_architecture(folder, executed):
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))


def _without_config(folder, executed):
    (folder / "config.json").unlink()


def _integers(folder, executed):
    found = load_file(folder / WEIGHTS)
    save_file({name: np.zeros(w.shape, np.int8) for name, w in found.items()}, folder / WEIGHTS)


def _pickled(folder, executed):
    (folder / WEIGHTS).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb(executed)))


def _other_size(folder, executed):
    found = load_file(folder / WEIGHTS)
    found["conv_in.weight"] = np.zeros((4, 3, 5, 5), np.float32)
    save_file(found, folder / WEIGHTS)


def _missing(folder, executed):
    shutil.rmtree(folder)


DAMAGES = {
    _truncate: "is not a .safetensors file, or is truncated",
    _other_architecture: "holds a UNet2DConditionModel, which is not supported",
    _without_config: "has no config.json beside its weights",
    _integers: "has the type int8; floating-point numbers are expected",
    _pickled: "is a pickle, which runs code when it is opened, so it is not read",
    _other_size: r"has conv_in.weight of shape \(4, 3, 5, 5\) instead of \(4, 3, 3, 3\)",
    _missing: "does not exist; the file or folder of a checkpoint is expected",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__[1:])
def test_files_that_will_not_do_are_answered_in_a_sentence(files, tmp_path, damage):
    """Nothing in them is executed, and nothing is written."""
    shutil.copytree(files / "small", tmp_path / "bad")
    damage(tmp_path / "bad", tmp_path / "executed")
    there = sorted(p.name for p in tmp_path.rglob("*"))
    pair = ("--network", tmp_path / "bad", "--network", files / "large")
    for command in ("calibrate", "sample"):
        code, text = run(command, *pair, "--out", tmp_path / "out" / command)
        assert code == 2 and re.search(DAMAGES[damage], text) and "Traceback" not in text, text
    assert sorted(p.name for p in tmp_path.rglob("*")) == there


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--network large --network small", "Their order by cost: 2, 1"),
        (
            "--network small --network latents",
            "Level 2 is for images of 2 x 2 x 4, and level 1 .* of 4 x 4 x 3",
        ),
        ("--network small --guidance 2", "Guidance of scale 2 needs a network that takes labels"),
        (
            "--network labels --guidance 2",
            'the label that stood for "no label" .* Add --negative N, its number',
        ),
        ("--network small --guidance 2 --guidance 3 --guidance 4", "given 3 times for 1 networks"),
        ("--network small --family resnet", "'--family': .*'resnet' is not one of 'unet2d', 'dit'"),
        (
            "--network names.npz",
            "do not tell which architecture it is. Add --family NAME, one of unet2d, dit",
        ),
        ("--network small --label 1", "--label is for"),
        (
            "--network small",
            "These levels come without a calibration. Measure one with .* calibrate --network",
        ),
    ],
)
def test_networks_that_do_not_fit_are_answered_in_a_sentence(files, tmp_path, arguments, message):
    words = [files / word if (files / word).exists() else word for word in arguments.split()]
    code, text = run("sample", *words, "--out", tmp_path / "out")
    assert code == 2 and re.search(message, text), text
    assert not (tmp_path / "out").exists()
