"""Sampling on several devices and in several processes, and after kill -9; each in processes of its own."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sampling_problems import draw

from mlem_jax.diffusion._sampling import sample as _sample

PROGRAM = str(Path(__file__).with_name("sampling_problems.py"))
COLLECTIVES = r"all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter|collective-broadcast"


def start(*arguments):
    return subprocess.Popen([sys.executable, PROGRAM, *map(str, arguments)])


def count_drawn(monkeypatch):
    """A list that fills with the batches that are drawn."""
    drawn, real = [], _sample.draw_batches

    def counted(mesh, sampler, batches, *rest):
        drawn.extend(batches)
        return real(mesh, sampler, batches, *rest)

    monkeypatch.setattr(_sample, "draw_batches", counted)
    return drawn


@pytest.mark.slow
def test_devices_change_nothing_and_exchange_nothing(tmp_path):
    assert start("devices", tmp_path / "found.npz").wait() == 0
    with np.load(tmp_path / "found.npz") as found:
        one, hlo = draw(20, batch_size=4).images, str(found["hlo"])
        for name in ("1", "2", "8"):
            np.testing.assert_allclose(found[name], one, rtol=0, atol=1e-5)
        # A callback is called once for each of 12 steps of each of 20 samples.
        pairs = [(step, index) for step in range(1, 13) for index in range(20)]
        np.testing.assert_array_equal(found["reported"], pairs)
    # The text is that of the program for eight devices, with its loops and branches, and says no such word.
    assert "num_partitions=8" in hlo and " while(" in hlo and " conditional(" in hlo
    assert not re.search(COLLECTIVES, hlo)


@pytest.mark.slow
def test_killed_and_continued(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    process = start("slowly", folder)
    while process.poll() is None and len(list((folder / "batches").glob("*.npz"))) < 3:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    there = sorted((folder / "batches").glob("*.npz"))
    assert 3 <= len(there) < 10 and not (folder / "samples.npz").exists()
    # As if it had been killed while it wrote, too.
    (folder / "batches" / ".00000036-00000040.npz.1.tmp").write_bytes(b"PK")
    drawn = count_drawn(monkeypatch)
    found = draw(40, batch_size=4, out=folder)
    assert len(drawn) == 10 - len(there)
    whole = draw(40, batch_size=4).images
    np.testing.assert_array_equal(found.images, whole)
    assert sorted(p.name for p in folder.iterdir()) == ["run.json", "samples.npz"]
    with np.load(folder / "samples.npz") as file:
        np.testing.assert_array_equal(file["images"], whole)
    # Once more: read, not drawn.
    drawn.clear()
    np.testing.assert_array_equal(draw(40, batch_size=4, out=folder).images, whole)
    assert not drawn


@pytest.mark.slow
def test_two_processes_draw_what_one_does(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hosts = [start("host", tmp_path / "run", port, index) for index in (0, 1)]
    assert [host.wait() for host in hosts] == [0, 0]
    alone = draw(20, batch_size=4).images
    shares = []
    for index in (0, 1):
        with np.load(tmp_path / f"host{index}.npz") as file:
            np.testing.assert_allclose(file["images"], alone[file["indices"]], rtol=0, atol=1e-5)
            shares.append(set(file["indices"].tolist()))
    assert shares[0] | shares[1] == set(range(20)) and not shares[0] & shares[1]
    assert min(map(len, shares)) >= 8
    # The same call in one process gathers what both have left.
    drawn = count_drawn(monkeypatch)
    found = draw(20, batch_size=4, out=tmp_path / "run")
    assert not drawn
    np.testing.assert_allclose(found.images, alone, rtol=0, atol=1e-5)
    assert (tmp_path / "run" / "samples.npz").is_file()
