"""What the command line says: help, version, and a sentence instead of a traceback for every wrong command."""

import ast
import dataclasses
import io
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import typer
from diffusion_problems import randomised, stand_in, TINY
from label_problems import CLASSES
from matplotlib.image import imread
from rich.console import Console
from typer.testing import CliRunner

import mlem_jax as ml
from mlem_jax._cli import app as _cli
from mlem_jax._cli.errors import stop_explained
from mlem_jax._cli.training_report import results_table, sizes_table
from mlem_jax.diffusion import Guided, Ladder, load_ladder, NoisePredictor, sample, save_ladder
from mlem_jax.diffusion._ladder import as_stored


def _save(folder, description):
    networks = [as_stored(randomised(n, seed=k)) for k, n in enumerate(description.networks())]
    bare = Ladder(tuple(networks), description, {"name": "tiny"}, {})
    save_ladder(folder, dataclasses.replace(bare, calibrations={"ode": stand_in(bare)}))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A ladder, one with classes, and files that are none."""
    folder = tmp_path_factory.mktemp("places")
    _save(folder / "ladder", TINY)
    _save(folder / "classes", dataclasses.replace(TINY, classes=CLASSES))
    (folder / "file").write_text("")
    np.savez(folder / "other.npz", a=1)
    return folder


def run(*arguments, columns=200):
    result = CliRunner().invoke(_cli.app, list(map(str, arguments)), env={"COLUMNS": str(columns)})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    # Without the frame of error messages and their line breaks.
    return result.exit_code, re.sub(r"[\s│]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", result.output))


WRONG = {
    "no number": ("--budget abc", 2, "Invalid value for '--budget'"),
    "budget nan": ("--budget nan", 2, "nan is not a positive number"),
    "budget inf": ("--budget inf", 2, "inf is not a positive number"),
    "budget 0": ("--budget 0", 2, "0 is not a positive number"),
    "error": ("--error -1", 2, "-1 is not a positive number"),
    "unreachable": ("--error 1e-9", 2, "An error of 1e-09 cannot be reached.*Calibrate with more steps"),
    "both": ("--budget 3 --error 1", 2, "Give --budget or --error, not both"),
    "half an image": ("--n 2.5", 2, "Invalid value for '--n'"),
    "no image": ("--n 0", 2, "Invalid value for '--n'"),
    "batch": ("--batch-size 0", 2, "Invalid value for '--batch-size'"),
    "seed": ("--seed -1", 2, "-1 is not an integer from 0 to 4294967295"),
    "large seed": ("--seed 99999999999", 2, "99999999999 is not an integer from 0"),
    "format": ("--format jpg", 2, "'jpg' is not one of 'float32', 'uint8'"),
    "option": ("--bugdet 3", 2, "No such option: --bugdet.*--budget"),
    "argument": ("seven", 2, "unexpected extra argument"),
    "no ladder": ("--checkpoint {places}/nowhere", 2, "nowhere is not a ladder"),
    "file as ladder": ("--checkpoint {places}/file", 2, "file is not a ladder"),
    "no calibration": (
        "--calibration {places}/none.npz",
        2,
        "none.npz is not there. Measure .* calibrate --checkpoint",
    ),
    "folder": (
        "--calibration {places}",
        2,
        "has no calibration of the probability flow. Measure it with 'python -m mlem_jax calibrate",
    ),
    "other file": (
        "--calibration {places}/other.npz",
        2,
        "other.npz is not a calibration, or damaged. Measure it",
    ),
    "no SDE": (
        "--sde",
        2,
        "without a calibration of the reverse SDE. Measure one with .* --sde --out FILE.npz'",
    ),
    "steps and budget": ("--steps 4 --budget 3", 2, "--steps N replaces the plan; leave out --budget"),
    "steps and calibration": ("--steps 4 --calibration {places}/x.npz", 2, "leave out --calibration"),
    "method": ("--method ab2", 2, "--method needs --steps N; add it"),
    "level": ("--steps 4 --level 3", 2, "--level 3: there are 2 networks; a number from 1 to 2 is expected"),
    "two ladders": (
        "--network {places}/file",
        2,
        "Give --checkpoint, .* or --network for each level; not both",
    ),
    "family": ("--family dit", 2, "--family and --dtype are for --network"),
    "decoder": ("--decoder {places}/nowhere", 2, "nowhere does not exist"),
    "label": ("--label 1", 2, "--label is for a ladder with classes"),
    "guidance": ("--guidance 2", 2, "--guidance is for a ladder with classes"),
    "negative": ("--negative 1", 2, "--negative is for guidance; add --guidance"),
    "negative out of range": (
        "--checkpoint {places}/classes --guidance 2 --negative 4",
        2,
        "--negative 4: this ladder has 3 classes; 0 to 2",
    ),
    "label out of range": (
        "--checkpoint {places}/classes --label 4 --calibration {places}/none.npz",
        2,
        "--label 4: this ladder has 3 classes; 0 to 2 are expected, or 3 for no label",
    ),
    "scales": (
        "--checkpoint {places}/classes --guidance 1 --guidance 2 --guidance 3",
        2,
        "given 3 times for 2 levels",
    ),
    "unguided": (
        "--checkpoint {places}/classes --guidance 2",
        2,
        "is without guidance. Measure .* --guidance 2.0",
    ),
    "file as folder": ("--out {places}/file", 2, "file is a file; choose another place"),
    "inside a file": ("--out {places}/file/run", 1, "Stopped: Cannot write to .*/file/run: Not a directory"),
}


@pytest.mark.parametrize("line, code, message", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_command_is_answered_in_a_sentence(places, tmp_path, line, code, message):
    common = ["sample", "--out", tmp_path / "out", "--checkpoint", places / "ladder", "--n", 2]
    found, text = run(*common, *line.format(places=places).split())
    assert found == code and re.search(message, text), text
    assert "mlem_jax.calibrate(" not in text and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_negative_label_takes_the_place_of_no_label(places, tmp_path):
    """u + 2 (c - u) with u for label 1: two Euler steps of the finest network, as in Python."""
    code, text = run(
        *("sample", "--checkpoint", places / "classes", "--steps", 2, "--n", 2, "--label", 0),
        *("--guidance", 2, "--negative", 1, "--out", tmp_path / "out"),
    )
    assert code == 0, text
    ladder = load_ladder(places / "classes")
    level = NoisePredictor(Guided(ladder.networks[-1], 2.0, 1), ladder.process)
    found = sample(
        [level],
        n=2,
        shape=ladder.shape,
        plan=ml.steps_plan(ladder.process.grid(2)),
        key=jr.key(0),
        args=jnp.asarray(0),
        progress=False,
    )
    with np.load(tmp_path / "out" / "samples.npz") as file:
        np.testing.assert_allclose(file["images"], found.images, rtol=1e-4, atol=1e-4)


def test_wrong_calibrations_and_demos(places, tmp_path):
    (tmp_path / "there.npz").write_text("")
    common = ("--checkpoint", places / "ladder")
    for arguments, message in (
        (("calibrate", *common, "--out", tmp_path / "there.npz"), "exists already; choose another --out"),
        (
            ("calibrate", *common, "--out", tmp_path / "a.npz", "--steps", 6),
            "--steps 6: a multiple of 4 .* such as 8",
        ),
        (
            ("calibrate", *common, "--out", places / "file" / "a.npz"),
            "Cannot write to .*. Choose another --out",
        ),
        (("calibrate", "--out", tmp_path / "a.npz", "--checkpoint", tmp_path), "is not a ladder"),
        (("calibrate",), "Missing option '--out'"),
        (("sample",), "Missing option '--out'"),
        (("--out", tmp_path / "d", "--json", tmp_path), "is a folder; name a file"),
        (("--budget", "x"), "Invalid value for '--budget'"),
        (("smaple",), "No such command 'smaple'"),
    ):
        code, text = run(*arguments)
        assert code == 2 and re.search(message, text), text


@pytest.mark.parametrize(
    "arguments", [("-h",), ("demo", "-h"), ("sample", "-h"), ("calibrate", "-h"), ("train", "-h")]
)
def test_help_is_eighty_columns_wide(arguments):
    result = CliRunner().invoke(_cli.app, list(arguments), env={"COLUMNS": "80"})
    assert result.exit_code == 0 and "Usage:" in result.output
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", result.output).splitlines())) <= 80


def test_tables_of_training_do_not_break_at_80_columns():
    # Networks as large as the largest published ones; every number stands whole in the row of its level.
    numbers = {"parameters": [1_523_456_789] * 2, "flops_per_image": [552_123.45e6] * 2}
    losses = {"data": [0.1234, 0.5678], "to_finest": [0.9876, 0.0]}
    card = {**numbers, "held_out_loss": losses, "to_finest_before": [1.5432, 0.0]}
    sizes = [("UNet", 1_523_456_789, 552_123.45e6), ("DiT", 1_523_456_789, 5_552_123.45e6)]
    shown = (
        ("1,523,456,789", "552123.45", "0.1234", "0.9876", "1.5432"),
        ("UNet", "1,523,456,789", "552123.45", "0.0994"),
    )
    for table, cells in zip((results_table(card), sizes_table(sizes)), shown, strict=True):
        console = Console(width=80, file=io.StringIO())
        console.print(table)
        lines = console.file.getvalue().splitlines()
        # Borders, header, rule and two rows.
        assert len(lines) == 6 and max(map(len, lines)) <= 80
        assert all(cell in lines[3] for cell in cells)


def test_version():
    assert run("--version") == (0, f"mlem_jax {ml.__version__} ")


def test_help_says_what_is_in_samples_npz():
    _, text = run("sample", "--help")
    for word in (
        "numpy.load",
        "images, an array of shape (n, height, width, channels)",
        "labels, of shape (n,)",
    ):
        assert word in text


@pytest.mark.slow
def test_bytes_pictures_labels_and_more_images(places, tmp_path):
    common = ("sample", "--checkpoint", places / "classes", "--budget", 3, "--out", tmp_path / "out")
    common += ("--format", "uint8", "--png", tmp_path / "png")
    assert run(*common, "--n", 2)[0] == 0
    with np.load(tmp_path / "out" / "samples.npz") as file:
        few = file["images"]
    assert run(*common, "--n", 5)[0] == 0
    with np.load(tmp_path / "out" / "samples.npz") as file:
        images, labels = file["images"], file["labels"]
    assert images.dtype == np.uint8 and images.shape == (5, 4, 4, 1)
    np.testing.assert_array_equal(images[:2], few)
    np.testing.assert_array_equal(labels, [0, 1, 2, 0, 1])
    assert sorted(p.name for p in (tmp_path / "png").iterdir()) == [f"0000000{i}.png" for i in range(5)]
    for i, image in enumerate(images):
        shown = imread(tmp_path / "png" / f"0000000{i}.png")
        np.testing.assert_allclose(shown, image[..., 0] / 255, atol=1e-6)


WITHOUT = """
import sys, importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {missing} else find(name, *rest)
import runpy
sys.argv = ["mlem_jax"]
runpy.run_module("mlem_jax", run_name="__main__")
"""


def test_a_missing_extra_is_one_sentence():
    program = WITHOUT.format(missing=("typer", "rich"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().count("\n") == 0 and "pip install 'mlem_jax[all]'" in done.stderr


def test_python_gives_no_advice_for_the_command_line():
    package = pathlib.Path(ml.__file__).parent
    found = []
    for path in package.rglob("*.py"):
        if path.parent.name == "_cli" or path.name == "__main__.py":
            continue
        tree = ast.parse(path.read_text())
        # Docstrings may name commands.
        told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        found += [
            (path.name, node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told
            if re.search(r"(?<![\w-])--[a-z]|python -m mlem_jax|mlem-jax ", node.value)
        ]
    assert not found


def test_a_signal_outside_of_training_is_explained(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as ended, stop_explained(Console()):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    assert ended.value.exit_code == 143 and "run the same again to continue" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
