"""The command `train`, ended from outside at several moments and started again: nothing is lost but seconds."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mlem_jax.diffusion import load_data, train_ladder

# With checkpoints as often as the first argument says, in seconds.
PROGRAM = """
import sys
from mlem_jax.diffusion._training import checkpoints
checkpoints._SECONDS = float(sys.argv.pop(1))
from mlem_jax._cli.app import main
main("python -m mlem_jax")
"""
LEVEL = "[[levels]]\nwidth = {}\nfolds = [4]\nmultipliers = [1]\nblocks = [1]\n"
TEXT = (
    'name = "t"\nshape = [4, 4, 1]\n'
    "[training]\nsteps = 4000\nmatch_steps = 1000\nbatch_size = 4\nwarmup_steps = 1\n"
    + "".join(map(LEVEL.format, (2, 6)))
)


def steps_saved(folder):
    return [int(path.name) for path in folder.glob("*") if path.name.isdigit()]


@pytest.mark.slow
def test_a_command_that_is_ended_at_any_moment_ends_on_the_same_numbers(tmp_path):
    np.save(tmp_path / "data.npy", np.random.default_rng(0).uniform(-1, 1, (80, 4, 4, 1)).astype(np.float32))
    (tmp_path / "ladder.toml").write_text(TEXT)
    out = tmp_path / "run"
    options = {
        "--config": tmp_path / "ladder.toml",
        "--data": tmp_path / "data.npy",
        "--out": out,
        "--pilots": 0,
    }
    arguments = ["train", *(str(word) for pair in options.items() for word in pair)]

    def ended(number, when, seconds=0.2):
        """What a run prints that gets the signal as soon as `when()` holds; with no signal a run to its end."""
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(seconds), *arguments],
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while number is not None and not when():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.002)
        if number is not None:
            os.kill(process.pid, number)
        printed = process.communicate()[0]
        code = {None: 0, signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        assert process.returncode == code, printed
        return printed

    def writing(folder):
        return any("tmp" in path.name for path in folder.glob("*"))

    # Before anything is saved, which blocks nothing; after a checkpoint; while one is written.
    ended(signal.SIGKILL, (out / "run.json").exists)
    ended(signal.SIGKILL, lambda: len(steps_saved(out / "finest")) >= 1)
    before = max(steps_saved(out / "finest"))
    ended(signal.SIGKILL, lambda: writing(out / "finest"))
    assert max(steps_saved(out / "finest")) >= before
    # Signals that ask: the step in hand is saved, and one sentence says how to go on.
    there = set(steps_saved(out / "finest"))
    printed = ended(signal.SIGINT, lambda: set(steps_saved(out / "finest")) - there)
    last = max(steps_saved(out / "finest"))
    assert f"SIGINT: stopped after step {last:,} of 4,000 (finest level), which is saved." in printed
    # Between two stages nothing is in hand.
    printed += ended(signal.SIGTERM, (out / "smaller").exists, seconds=30)
    assert printed.count("un the same again to continue") == 2
    # The next run goes on where the last one ended, and says so.
    begun = max(steps_saved(out / "smaller"), default=0)
    assert f"smaller levels: {begun:,} of 1,000" in ended(None, None, seconds=30)
    data = load_data(tmp_path / "data.npy", (4, 4, 1))
    whole = tmp_path / "whole"
    train_ladder(tmp_path / "ladder.toml", whole, data.images, data.held_out, pilots=0, progress=False)
    for name in ("losses.csv", "ladder/level_1.eqx", "ladder/level_2.eqx"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
