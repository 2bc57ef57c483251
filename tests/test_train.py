"""The trainer: deterministic, continued after a kill, matched levels, a ladder end to end."""

import dataclasses
import functools
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from diffusion_problems import arrays, tiny_config, tiny_images

from mlem_jax._io import full_disk_explained
from mlem_jax.diffusion._training import checkpoints, train as trainer, train_networks
from mlem_jax.diffusion._training.batches import batch_indices

# Trains until it is killed: prints a line after every checkpoint, and is slow on purpose after the first.
SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[1])
import orbax.checkpoint as ocp
from diffusion_problems import tiny_config, tiny_images
from mlem_jax.diffusion._training import train_networks

save = ocp.CheckpointManager.save
def slow(self, step, *args, **kwargs):
    out = save(self, step, *args, **kwargs)
    self.wait_until_finished()
    print("saved", step, flush=True)
    time.sleep(60 if step >= 20 else 0)
    return out
ocp.CheckpointManager.save = slow
config = tiny_config()
train_networks(config, config.networks()[:1], tiny_images(), sys.argv[2], steps=40,
               peak_learning_rate=1e-3, save_every=10, progress=False)
"""


@pytest.fixture(scope="module", autouse=True)
def programs():
    """Training steps of equal settings are compiled once in this file instead of in every call."""
    make_optimiser, make_step, made = functools.cache(trainer.make_optimiser), trainer.make_step, {}

    def optimiser_of(training, *settings):
        return make_optimiser(dataclasses.replace(training, sheet_every=0), *settings)

    def step_of(config, static, optimiser, mesh):
        training = dataclasses.replace(config.training, sheet_every=0)
        key = dataclasses.replace(config, training=training), jax.tree.structure(static), optimiser, mesh
        if key not in made:
            made[key] = make_step(config, static, optimiser, mesh)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "make_optimiser", optimiser_of)
        patch.setattr(trainer, "make_step", step_of)
        yield


def train(directory, *, steps=40, config=None, **settings):
    config = config or tiny_config()
    return train_networks(
        config,
        config.networks()[:1],
        tiny_images(),
        directory,
        steps=steps,
        peak_learning_rate=1e-3,
        save_every=10,
        progress=False,
        **settings,
    )


@pytest.mark.slow
def test_a_killed_run_ends_where_an_uninterrupted_one_does(tmp_path, request):
    whole, history = train(tmp_path / "whole")
    folder = str(request.path.parent)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, folder, str(tmp_path / "killed")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "saved 20":
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    continued, again = train(tmp_path / "killed")
    np.testing.assert_array_equal(arrays(continued), arrays(whole))
    np.testing.assert_array_equal(again, history)


def test_a_run_of_other_settings_is_refused(tmp_path):
    train(tmp_path / "run", steps=10)
    with pytest.raises(ValueError, match="differs in steps .there 10, now 5.*or choose another folder"):
        train(tmp_path / "run", steps=5)
    with pytest.raises(ValueError, match="differs in seed .there 0, now 1"):
        train(tmp_path / "run", steps=20, config=tiny_config(seed=1))


@pytest.mark.slow
def test_a_run_that_is_made_longer_goes_on(tmp_path):
    """From where it was: its losses are kept, and what is trained on is the curve of no other run."""
    short, losses = train(tmp_path / "run", steps=60)
    found, history = train(tmp_path / "run", steps=160, config=tiny_config(warmup_steps=4))
    assert history.shape == (4, 1)
    # The first window of 50 steps was over before; the second goes on after ten steps.
    np.testing.assert_array_equal(history[0], losses[0])
    assert np.all(history[1:] > 0) and np.any(arrays(found) != arrays(short))
    fresh, _ = train(tmp_path / "fresh", steps=160, config=tiny_config(warmup_steps=4))
    assert np.any(arrays(found) != arrays(fresh))


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_saves_the_step_that_it_came_in(tmp_path, uninterrupted, number):
    _, whole, history = uninterrupted
    before = signal.getsignal(number)

    def interrupt(step, networks):
        if step == 7:
            signal.raise_signal(number)

    with pytest.raises(
        KeyboardInterrupt, match=f"{number.name}: stopped after step 8 of 20 .*same again"
    ) as e:
        train(tmp_path / "run", steps=20, config=tiny_config(sheet_every=7), watch=interrupt)
    assert e.value.signum == number and signal.getsignal(number) == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["8"]
    continued, again = train(tmp_path / "run", steps=20)
    np.testing.assert_array_equal(arrays(continued), arrays(whole))
    np.testing.assert_array_equal(again, history)


def test_checkpoints_come_by_the_clock(tmp_path, monkeypatch):
    """With ten seconds a step and half a minute between checkpoints, in every third step and at the end."""
    now, saved = [0.0], []
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    real = ocp.CheckpointManager.save
    monkeypatch.setattr(
        ocp.CheckpointManager,
        "save",
        lambda self, step, *a, **k: saved.append(step) or real(self, step, *a, **k),
    )

    def tick(step, networks):
        now[0] += 10.0

    config = tiny_config(sheet_every=1)
    train_networks(
        config,
        config.networks()[:1],
        tiny_images(),
        tmp_path,
        steps=11,
        peak_learning_rate=1e-3,
        progress=False,
        watch=tick,
    )
    assert saved == [4, 7, 10, 11]


@pytest.mark.slow
def test_averages_have_the_weights_of_their_decay(tmp_path):
    """Averages after each of two steps, beside the parameters themselves, which are averages that forget at once."""

    def after_each_step(decay):
        config = tiny_config(ema_decay=decay, warmup_steps=0, sheet_every=1)
        seen = [arrays(config.networks()[:1])]
        train(
            tmp_path / str(decay),
            steps=2,
            config=config,
            watch=lambda step, found: seen.append(arrays(found)),
        )
        return seen

    p0, p1, p2 = after_each_step(0.0)
    assert np.max(np.abs(p1 - p0)) > 1e-4 and np.max(np.abs(p2 - p1)) > 1e-4
    # Early decays are 1/10 and 2/11 where the one that is asked for is larger.
    _, first, second = after_each_step(0.999)
    np.testing.assert_allclose(first, (p0 + 9 * p1) / 10, rtol=0, atol=1e-6)
    np.testing.assert_allclose(second, (0.2 * p0 + 1.8 * p1 + 9 * p2) / 11, rtol=0, atol=1e-6)
    _, first, second = after_each_step(0.05)
    np.testing.assert_allclose(second, 0.0025 * p0 + 0.0475 * p1 + 0.95 * p2, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run of 20 steps: its folder, networks and losses."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    return folder, *train(folder, steps=20)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(tmp_path, uninterrupted):
    folder, whole, history = uninterrupted
    files = [path.relative_to(folder) for path in (folder / "20").rglob("*") if path.is_file()]
    refused = 0
    for i, name in enumerate(sorted(files)):
        run = tmp_path / str(i)
        shutil.copytree(folder, run)
        (run / name).write_bytes((run / name).read_bytes()[: (run / name).stat().st_size // 2])
        try:
            found, again = train(run, steps=20)
        except ValueError as error:
            refused += 1
            assert f"{run / '20'} is damaged" in str(error) and "continue from step 10" in str(error)
        else:
            # A file that is not needed.
            np.testing.assert_array_equal(arrays(found), arrays(whole))
    assert refused >= 4
    # As the message says.
    run = tmp_path / "0"
    (run / "20").rename(tmp_path / "moved")
    found, again = train(run, steps=20)
    np.testing.assert_array_equal(arrays(found), arrays(whole))
    np.testing.assert_array_equal(again, history)


@pytest.mark.slow
def test_a_full_disk_keeps_the_checkpoints_before(tmp_path, uninterrupted, monkeypatch):
    _, whole, _ = uninterrupted
    real, asked = shutil.disk_usage, []

    def usage(path):
        asked.append(path)
        # No room for the second checkpoint.
        return real(path)._replace(free=1000) if len(asked) > 1 else real(path)

    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match="No space is left to write .*run. Nothing"),
    ):
        patch.setattr(shutil, "disk_usage", usage)
        train(tmp_path / "run", steps=20)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["10"]
    found, _ = train(tmp_path / "run", steps=20)
    np.testing.assert_array_equal(arrays(found), arrays(whole))


def test_what_orbax_says_of_a_full_disk_is_made_clear(tmp_path, monkeypatch):
    """By a quota, say, which the disk does not tell of before."""

    def save(*args, **kwargs):
        raise ValueError(
            "RESOURCE_EXHAUSTED: Error writing ...: No space left on device [os_error_code='28']"
        )

    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match="No space is left to write .*make room"),
    ):
        patch.setattr(ocp.CheckpointManager, "save", save)
        train(tmp_path / "run", steps=10)
    # Other errors stay what they are.
    with pytest.raises(ValueError, match="at least batch_size"), full_disk_explained(tmp_path):
        raise ValueError("at least batch_size")


def test_batches_are_the_permutations_of_an_epoch():
    epoch = np.concatenate([batch_indices(3, step, 8, 32) for step in range(4)])
    np.testing.assert_array_equal(np.sort(epoch), np.arange(32))
    following = np.concatenate([batch_indices(3, step, 8, 32) for step in range(4, 8)])
    assert np.any(following != epoch)
