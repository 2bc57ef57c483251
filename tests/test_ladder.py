"""Ladders on disk, and training that starts from an earlier one."""

import dataclasses
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import arrays, randomised, TINY, tiny_images

from mlem_jax.diffusion import calibrate_ladder, Ladder, Level, load_ladder, save_ladder, train_ladder

TEXT = """
name = "tiny"
shape = [4, 4, 1]

[training]
steps = 20
match_steps = 20
batch_size = 8
warmup_steps = 5

[[levels]]
width = 4
folds = [4]
multipliers = [1]
blocks = [1]

[[levels]]
width = 8
folds = [4]
multipliers = [1]
blocks = [1]
"""


@pytest.fixture(scope="module")
def ladder():
    networks = tuple(randomised(n, seed=k) for k, n in enumerate(TINY.networks()))
    bare = Ladder(networks, TINY, {"name": "tiny"}, {})
    found = {
        kind: calibrate_ladder(bare, sde=kind == "sde", steps=8, pilots=2, progress=False) for kind in ("ode", "sde")
    }
    return dataclasses.replace(bare, calibrations=found)


def test_round_trip_to_half_precision(ladder, tmp_path):
    save_ladder(tmp_path / "l", ladder, TEXT)
    again = load_ladder(tmp_path / "l")
    assert again.config == TINY and again.card == ladder.card
    for a, b in zip(ladder.networks, again.networks, strict=True):
        np.testing.assert_array_equal(arrays(b), arrays(a).astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(again.calibration(sde=True).kicks, ladder.calibration(sde=True).kicks)
    assert [p.name for p in tmp_path.iterdir()] == ["l"]


def test_nothing_is_overwritten_and_an_interrupted_save_leaves_nothing(ladder, tmp_path, monkeypatch):
    save_ladder(tmp_path / "l", ladder, TEXT)
    with pytest.raises(FileExistsError, match="choose another place"):
        save_ladder(tmp_path / "l", ladder, TEXT)

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(eqx, "tree_serialise_leaves", stop)
    with pytest.raises(KeyboardInterrupt):
        save_ladder(tmp_path / "m", ladder, TEXT)
    assert [p.name for p in tmp_path.iterdir()] == ["l"]


def test_damaged_and_foreign_files(ladder, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a ladder"):
        load_ladder(tmp_path)
    save_ladder(tmp_path / "l", ladder, TEXT)
    first, second = tmp_path / "l" / "level_1.eqx", tmp_path / "l" / "level_2.eqx"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(ValueError, match="level_1.eqx does not hold level 1"):
        load_ladder(tmp_path / "l")
    first.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged or belongs to"):
        load_ladder(tmp_path / "l")


def test_training_from_an_earlier_ladder_keeps_its_finest_level(ladder, tmp_path):
    path = tmp_path / "ladder.toml"
    path.write_text(TEXT)
    images = tiny_images()
    found = train_ladder(path, tmp_path / "run", images, images, start=ladder, progress=False)
    kept = arrays(ladder.networks[1]).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(arrays(found.networks[1]), kept)
    assert not np.allclose(arrays(found.networks[0]), arrays(ladder.networks[0]), atol=1e-2)
    # Matched: nearer to the finest level than where it started.
    x, level = jr.normal(jr.key(0), (64, 4, 4, 1)), jnp.zeros(())

    def distance(network):
        return float(jnp.mean((network(x, level) - ladder.networks[1](x, level)) ** 2))

    assert distance(found.networks[0]) < distance(ladder.networks[0])
    assert set(found.card["held_out_loss"]) == {"data", "to_finest"}
    lines = (tmp_path / "run" / "losses.csv").read_text().splitlines()
    assert lines[0] == "stage,step,level_1,level_2" and lines[1].startswith("smaller,20,")


def test_training_refuses_another_finest_level(ladder, tmp_path):
    path = tmp_path / "ladder.toml"
    path.write_text(TEXT)
    wide = Level(width=16, folds=(4,), multipliers=(1,), blocks=(1,))
    other = dataclasses.replace(
        ladder, config=dataclasses.replace(TINY, levels=(TINY.levels[0], wide)), networks=ladder.networks
    )
    images = tiny_images()
    with pytest.raises(ValueError, match="must have the same finest level"):
        train_ladder(path, tmp_path / "run", images, images, start=other, progress=False)
    path.write_text(TEXT.replace("match_steps = 20", "match_steps = 0"))
    with pytest.raises(ValueError, match="match_steps of at least 1"):
        train_ladder(path, tmp_path / "run", images, images, start=ladder, progress=False)
    assert not os.path.exists(tmp_path / "run" / "smaller")


def test_the_shipped_ladder():
    ladder = load_ladder()
    flops = np.array(ladder.flops())
    assert len(flops) == 4 and np.all((flops[1:] / flops[:-1] > 4) & (flops[1:] / flops[:-1] < 8))
    shape = ladder.config.shape
    for sde in (False, True):
        ladder.calibration(sde=sde).require(ladder.term(sde=sde).levels, jnp.zeros(shape))
    # Its finest level denoises: a slightly noised garment-like patch comes back nearer to where it was.
    network, process = ladder.networks[-1], ladder.config.process
    x0 = -jnp.ones(shape).at[8:20, 8:20].set(-0.6)
    s = jnp.asarray(0.5)
    noise = jr.normal(jr.key(0), shape)
    x = process.alpha(s) * x0 + process.sigma(s) * noise
    v = jax.jit(network)(x, jnp.log(s))
    guess = process.alpha(s) * x - process.sigma(s) * v
    assert jnp.mean((guess - x0) ** 2) < 0.3 * jnp.mean((x / process.alpha(s) - x0) ** 2)
