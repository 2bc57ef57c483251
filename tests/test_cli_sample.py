"""The commands `sample` and `calibrate`, on a tiny untrained ladder."""

import dataclasses
import errno
import os
import re

import numpy as np
import pytest
from diffusion_problems import randomised, stand_in, TINY
from matplotlib.image import imread
from typer.testing import CliRunner

import mlem_jax as ml
from mlem_jax import diffusion
from mlem_jax._cli import app as _cli
from mlem_jax.diffusion import Ladder, save_ladder
from mlem_jax.diffusion._ladder import as_stored, METHODS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """What `train --out` leaves: the folder that holds the ladder."""
    folder = tmp_path_factory.mktemp("trained")
    networks = [randomised(n, seed=k) for k, n in enumerate(TINY.networks())]
    # As they will be when they are read, since calibrations belong to exact numbers.

    bare = Ladder(tuple(map(as_stored, networks)), TINY, {"name": "tiny"}, {})
    ladder = dataclasses.replace(
        bare, calibrations={k: stand_in(bare, sde=k == "sde") for k in ("ode", "sde")}
    )
    save_ladder(folder / "ladder", ladder)
    return folder


def run(*arguments):
    return CliRunner().invoke(_cli.app, list(map(str, arguments)), env={"COLUMNS": "300"})


def _full(handle):
    raise OSError(errno.ENOSPC, "No space left on device")


def images(folder):
    with np.load(folder / "samples.npz") as file:
        return file["images"]


@pytest.mark.slow
def test_sample_command(checkpoint, tmp_path):
    common = ("sample", "--checkpoint", checkpoint, "--batch-size", 3, "--budget", 3)
    first = run(*common, "--n", 5, "--out", tmp_path / "a")
    assert first.exit_code == 0, first.output
    assert "predicted error" in first.output and "5 images: " in first.output
    assert "wall-clock" not in first.output
    timed = run(*common, "--in-seconds", "--n", 1, "--out", tmp_path / "timed")
    assert timed.exit_code == 0 and "Costs are wall-clock seconds" in timed.output, timed.output
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["run.json", "samples.npz", "samples.png"]
    assert images(tmp_path / "a").shape == (5, 4, 4, 1)
    assert imread(tmp_path / "a" / "samples.png").shape[:2] == (8, 12)
    before = images(tmp_path / "a")
    # The ladder's own folder will do, the same command again changes nothing, and more images begin with these.
    again = run(
        "sample", "--checkpoint", checkpoint / "ladder", *common[3:], "--n", 5, "--out", tmp_path / "a"
    )
    assert again.exit_code == 0, again.output
    np.testing.assert_array_equal(images(tmp_path / "a"), before)
    more = run(*common, "--n", 7, "--out", tmp_path / "b")
    assert more.exit_code == 0, more.output
    np.testing.assert_allclose(images(tmp_path / "b")[:5], before, atol=1e-5)
    # Another seed, and the SDE, are other images, and no part of this run.
    for other, differs in (("--seed=1", "key"), ("--sde", "stochasticity"), ("--format=uint8", "format")):
        result = run(*common, "--n", 5, other, "--out", tmp_path / "a")
        assert result.exit_code == 2 and f"which differs in {differs};" in result.output
    sde = run(*common, "--n", 5, "--sde", "--out", tmp_path / "c")
    assert sde.exit_code == 0, sde.output
    assert np.all(images(tmp_path / "c") != before)


def test_sample_refuses(checkpoint, tmp_path, monkeypatch):
    common = ("sample", "--checkpoint", checkpoint, "--out", tmp_path / "out")
    (tmp_path / "file").write_text("")
    np.savez(tmp_path / "other.npz", a=1)
    bare = Ladder(TINY.networks(), TINY, {}, {})
    stand_in(bare).save(tmp_path / "foreign.npz")
    bare_ladder = tmp_path / "bare"
    save_ladder(bare_ladder, bare)
    for arguments, message in (
        (("--budget", 3, "--error", 1), "not both"),
        (("--budget", 1e-9), "larger budget"),
        (("--checkpoint", tmp_path), "is not a ladder"),
        (("--calibration", tmp_path / "other.npz"), "is not a calibration"),
        (("--calibration", tmp_path / "foreign.npz"), "of which number 1, 2 differ"),
        (("--checkpoint", bare_ladder), f"mlem_jax calibrate --checkpoint {bare_ladder} --out FILE.npz'"),
        (("--checkpoint", bare_ladder, "--sde"), "calibration of the reverse SDE"),
        (("--out", tmp_path), "files that are not of a sampling run"),
        (("--n", 0), "--n"),
    ):
        result = run(*common, *arguments)
        assert result.exit_code == 2 and message in result.output, result.output
    assert not (tmp_path / "out").exists()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        result = run(*common)
    assert result.exit_code == 1 and "No space is left to write" in result.output


@pytest.mark.slow
def test_calibrate_command(checkpoint, tmp_path, monkeypatch):
    asked = []

    def measured(ladder, *, keep_in, **settings):
        asked.append(settings)
        keep_in.mkdir(exist_ok=True)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return stand_in(ladder, **settings)

    monkeypatch.setattr(diffusion, "calibrate_ladder", measured)
    common = ("calibrate", "--checkpoint", checkpoint, "--budget", 3)
    path = tmp_path / "new" / "found.npz"
    result = run(*common, "--sde", "--pilots", 5, "--steps", 8, "--out", path)
    assert result.exit_code == 0, result.output
    assert asked == [
        {"sde": True, "steps": 8, "pilots": 5, "method": METHODS[0], "guidance": None, "fit_pilots": 0}
    ]
    assert "8 steps, 3 pilot" in result.output and "A plan with budget 3:" in result.output
    assert ml.Calibration.load(path).num_levels == 2
    # The line that it ends with is a command that works.
    (line,) = [line for line in result.output.splitlines() if line.startswith("Draw with it: ")]
    command = line.removeprefix("Draw with it: python -m mlem_jax ").replace("FOLDER", str(tmp_path / "out"))
    drawn = run(*command.split(), "--n", 2, "--budget", 3, "--in-seconds")
    assert drawn.exit_code == 0 and "Costs are wall-clock seconds" in drawn.output, drawn.output
    # Never over a file that is there, and said before the work.
    before = path.read_bytes()
    again = run(*common, "--out", path)
    assert again.exit_code == 2 and "exists already" in again.output and len(asked) == 1
    assert path.read_bytes() == before
    (tmp_path / "file").write_text("")
    nowhere = run(*common, "--out", tmp_path / "file" / "a.npz")
    assert nowhere.exit_code == 2 and "Cannot write to" in nowhere.output and len(asked) == 1
    # What was measured is shown even where the disk has become full.
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        full = run(*common, "--out", tmp_path / "full.npz")
    assert full.exit_code == 1 and "No space is left to write" in full.output and "3 pilot" in full.output
    # Its parts are kept too, so that the same command does not measure them again.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full.npz.unfinished", "new", "out"]
    # A plan that cannot be made is no reason to lose the measurement.
    poor = run(*common[:3], "--budget", 1e-9, "--out", tmp_path / "poor.npz")
    assert poor.exit_code == 0 and "No plan: " in poor.output and (tmp_path / "poor.npz").is_file()
    # Interrupted in the second of two methods, when the first is written.
    both = (*common, "--pilots", 5, "--out", tmp_path / "both")
    stopped = run(*both)
    assert stopped.exit_code == 130 and "run the same again to continue" in stopped.output
    assert (tmp_path / "both" / "calibration_ode.npz").is_file()
    finished = run(*both)
    assert finished.exit_code == 0 and len(list((tmp_path / "both").iterdir())) == 2, finished.output
    assert run(*both).exit_code == 2 and not (tmp_path / "both.unfinished").exists()


@pytest.mark.parametrize(
    "command, options",
    [
        (
            "sample",
            "out checkpoint n budget error in-seconds sde label guidance seed batch-size calibration".split(),
        ),
        ("calibrate", "out checkpoint sde pilots steps guidance budget fit-pilots".split()),
    ],
)
def test_help_names_every_option(command, options):
    result = run(command, "--help")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", result.output)
    assert result.exit_code == 0 and all(f"--{option}" in plain for option in options)
