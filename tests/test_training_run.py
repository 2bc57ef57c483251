"""The folder of a training run: it knows its data and its configuration, can be made longer, and a failed first try
does not block it."""

import dataclasses
import shutil

import pytest
from diffusion_problems import arrays, TINY, tiny_config

from mlem_jax.diffusion import read_config
from mlem_jax.diffusion._training.run import begin_run, check_room, DataIdentity

CATS = DataIdentity("cats.npy", "0123", 1_000, 100)
DOGS = dataclasses.replace(CATS, name="dogs.npy", fingerprint="4567")


def begun(folder):
    """The folder of a run that has a checkpoint and a ladder."""
    begin_run(folder, TINY, CATS)
    (folder / "finest" / "20").mkdir(parents=True)
    (folder / "ladder").mkdir()
    (folder / "ladder" / "level_1.eqx").write_text("trained")
    return folder


def test_other_data_is_refused_with_both_names(tmp_path):
    folder = begun(tmp_path / "run")
    with pytest.raises(
        ValueError,
        match=r"begun with other data: with cats.npy \(1,000 images and 100 held out\), and now dogs.npy \(1,000",
    ):
        begin_run(folder, TINY, DOGS)
    # The same data may have moved.
    begin_run(folder, TINY, dataclasses.replace(CATS, name="moved.npy"))
    assert (folder / "ladder").is_dir()


def test_a_first_try_without_a_checkpoint_blocks_nothing(tmp_path):
    begin_run(tmp_path / "run", TINY, CATS)
    other = tiny_config(seed=5)
    begin_run(tmp_path / "run", other, DOGS)
    assert read_config(tmp_path / "run" / "config.toml") == other


def test_another_configuration_is_refused_by_what_differs(tmp_path):
    folder = begun(tmp_path / "run")
    for config, message in (
        (tiny_config(seed=5), r"another configuration, which differs in seed \(there 0, now 5\)"),
        (tiny_config(steps=30, batch_size=4), r"differs in batch_size \(there 8, now 4\)"),
        (tiny_config(steps=10), "it has 20 steps and 20 of matching, and fewer were asked for .10 and 20"),
        (tiny_config(steps=30, match_steps=10), "and fewer were asked for .30 and 10"),
        (dataclasses.replace(TINY, prediction="eps"), r"differs in prediction \(there v, now eps\)"),
        (dataclasses.replace(TINY, levels=TINY.levels[1:]), r"differs in levels \(there \(Level"),
    ):
        with pytest.raises(ValueError, match=message):
            begin_run(folder, config, CATS)
    # Neither the name nor an edited config.toml is another configuration.
    (folder / "config.toml").write_text("nonsense")
    begin_run(folder, dataclasses.replace(TINY, name="other"), CATS)
    assert (folder / "ladder").is_dir()


def test_the_ladder_of_a_run_that_is_made_longer_is_kept(tmp_path):
    folder = begun(tmp_path / "run")
    longer = tiny_config(steps=40, warmup_steps=7)
    begin_run(folder, longer, CATS)
    assert (folder / "ladder-20" / "level_1.eqx").read_text() == "trained"
    assert not (folder / "ladder").exists() and read_config(folder / "config.toml") == longer
    # Again, with as many steps of the finest level as before, and a folder of that name in the way.
    (folder / "ladder").mkdir()
    (folder / "ladder-40").mkdir()
    begin_run(folder, tiny_config(steps=40, warmup_steps=7, match_steps=21), CATS)
    assert sorted(p.name for p in folder.glob("ladder*")) == ["ladder-20", "ladder-40", "ladder-40-2"]


def test_a_damaged_description_is_named(tmp_path):
    folder = begun(tmp_path / "run")
    for content in ("", "[]", '{"data": {}}', "{"):
        (folder / "run.json").write_text(content)
        with pytest.raises(ValueError, match="run.json is damaged"):
            begin_run(folder, TINY, CATS)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"Cannot write to .*file/run: Not a directory\. Choose another folder"):
        begun(tmp_path / "file" / "run")


def test_room_is_asked_for_before_the_start(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    networks = TINY.networks()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000))
    with pytest.raises(OSError, match="writes up to 0 MB to .*run, where 0 MB are free. Nothing was begun"):
        check_room(tmp_path / "run", networks)
    # A run that has begun goes on as long as it has room for its next checkpoint.
    check_room(begun(tmp_path / "run"), networks)
    # Three checkpoints of four numbers of four bytes per parameter, and two bytes in the ladder.
    count = len(arrays(networks))
    for free, enough in ((50 * count, True), (50 * count - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        if enough:
            check_room(tmp_path / "other", networks)
        else:
            with pytest.raises(OSError, match="make room"):
                check_room(tmp_path / "other", networks)
