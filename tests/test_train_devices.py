"""Training on several devices, from bytes, and watched: none of it changes what is trained."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from diffusion_problems import arrays, tiny_config, tiny_images
from matplotlib.image import imread
from training_problems import trained

from mlem_jax.diffusion._data import as_floats
from mlem_jax.diffusion._training import held_out_losses, Sheets, train_networks

PROGRAM = str(Path(__file__).with_name("training_problems.py"))


@pytest.mark.slow
def test_two_devices_go_on_where_one_stopped_and_end_where_one_does(tmp_path):
    one, history = trained(tmp_path / "one")
    assert np.abs(one - arrays(tiny_config().networks()[0])).max() > 0.01
    # Ten steps on one device, the rest on two.
    shutil.rmtree(tmp_path / "one" / "20")
    file = tmp_path / "found.npz"
    subprocess.run([sys.executable, PROGRAM, "2", str(tmp_path / "one"), str(file)], check=True)
    with np.load(file) as found:
        np.testing.assert_allclose(found["numbers"], one, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["history"], history, rtol=1e-5)
        # Two devices do not divide a batch of nine or seven.
        np.testing.assert_array_equal(found["sizes"], [2, 1, 1])


@pytest.mark.slow
def test_bytes_train_what_their_numbers_do(tmp_path):
    config = tiny_config()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 4, 4, 1)).astype(np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    found = [
        arrays(
            train_networks(
                config,
                config.networks()[:1],
                images,
                tmp_path / str(k),
                steps=5,
                peak_learning_rate=1e-2,
                progress=False,
            )[0]
        )
        for k, images in enumerate((as_floats(pixels), np.load(tmp_path / "a.npy", mmap_mode="r")))
    ]
    np.testing.assert_array_equal(*found)


@pytest.mark.slow
def test_sheets_change_nothing(tmp_path):
    config = tiny_config(sheet_every=10)
    held_out = tiny_images(40, seed=1)
    found = {}
    for name, watch in (("with", Sheets(tmp_path / "sheets", "finest", config, held_out)), ("without", None)):
        (found[name],), _ = train_networks(
            config,
            config.networks()[1:],
            tiny_images(),
            tmp_path / name,
            steps=20,
            peak_learning_rate=1e-2,
            progress=False,
            watch=watch,
        )
    np.testing.assert_array_equal(*map(arrays, found.values()))
    names = [p.name for p in sorted((tmp_path / "sheets").iterdir())]
    assert names == ["finest-00000010.png", "finest-00000020.png", "finest.csv"]
    # Eight images of 4 x 4 in a row for each network, here one.
    assert imread(tmp_path / "sheets" / names[1]).shape[:2] == (4, 32)
    lines = [line.split(",") for line in (tmp_path / "sheets" / "finest.csv").read_text().splitlines()]
    assert [line[0] for line in lines] == ["step", "10", "20"]
    losses = held_out_losses(config, found["with"], held_out)["data"]
    assert lines[2][1:] == [f"{loss:.6f}" for loss in losses]


@pytest.mark.slow
def test_a_sheet_after_a_kill_and_on_a_full_disk(tmp_path, monkeypatch):
    config = tiny_config(sheet_every=10)
    networks, held_out = config.networks(), tiny_images(20)
    sheets = Sheets(tmp_path, "finest", config, held_out)
    for step in (10, 20, 30, 20):
        sheets(step, (networks,))
    lines = (tmp_path / "finest.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "10", "20"]
    losses = held_out_losses(config, networks, held_out)["data"]
    assert lines[-1].split(",")[1:] == [f"{loss:.6f}" for loss in losses]
    assert imread(tmp_path / "finest-00000020.png").shape[:2] == (8, 32)

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space is left to write .*finest-0"):
        patch.setattr(os, "fsync", full)
        sheets(40, (networks,))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
