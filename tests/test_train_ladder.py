"""`train_ladder` and `train_networks` end to end: from a file to a ladder on disk, and what they refuse."""

import dataclasses

import diffrax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_problems import arrays, randomised, stand_in, TINY, tiny_config, tiny_images

from mlem_jax.diffusion import calibrate_ladder, Ladder, load_ladder, train_ladder
from mlem_jax.diffusion._training import train_networks
from mlem_jax.diffusion._training.train_ladder import _calibrated

TOML = """
name = "tiny"
shape = [4, 4, 1]

[training]
steps = 60
match_steps = 60
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


@pytest.mark.slow
def test_too_few_images_and_a_rate_that_diverges(tmp_path):
    config = tiny_config()
    with pytest.raises(ValueError, match="at least batch_size=8 images of shape"):
        train_networks(
            config, config.networks(), tiny_images(4), tmp_path / "a", steps=5, peak_learning_rate=1e-3
        )
    images = tiny_images()
    images[:] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        train_networks(
            config,
            config.networks(),
            images,
            tmp_path / "b",
            steps=5,
            peak_learning_rate=1e-3,
            progress=False,
        )


@pytest.mark.slow
def test_a_ladder_of_one_level_is_trained_loaded_and_solved(tmp_path):
    config = dataclasses.replace(tiny_config(), levels=TINY.levels[1:])
    images = tiny_images(64)
    ladder = train_ladder(config, tmp_path, images, tiny_images(16, seed=1), pilots=0, progress=False)
    assert not ladder.calibrations and ladder.card["held_out_loss"]["to_finest"] == [0.0]
    ts = config.process.grid(8)
    solution = diffrax.diffeqsolve(
        ladder.term(),
        diffrax.Euler(),
        ts[0],
        ts[-1],
        None,
        ts[0] * jnp.ones((4, 4, 1)),
        stepsize_controller=diffrax.StepTo(ts),
    )
    assert np.all(np.isfinite(solution.ys))
    # Other data into the same folder, by name.
    with pytest.raises(
        ValueError, match="begun with other data: with images in memory .64 .*, and now more.npy"
    ):
        train_ladder(config, tmp_path, tiny_images(65), images, progress=False, data_name="more.npy")


@pytest.mark.slow
def test_a_run_that_is_interrupted_while_it_calibrates_keeps_what_it_measured(tmp_path, monkeypatch):
    config, asked, interruptions = tiny_config(), [], [2]
    ladder = Ladder(config.networks(), config, {}, {})

    def measure(ladder, *, sde=False, **settings):
        asked.append(("sde" if sde else "ode") + ("_2" if "method" in settings else ""))
        # Within a calibration its parts are kept, and the second method measures only what is its own.
        assert settings["keep_in"] == tmp_path / "kept" / "parts"
        assert (settings["like"] is None) == (asked[-1] != "ode_2")
        if len(asked) in interruptions:
            interruptions.clear()
            raise KeyboardInterrupt
        return stand_in(ladder, sde=sde)

    monkeypatch.setattr("mlem_jax.diffusion._training.train_ladder.calibrate_ladder", measure)
    with pytest.raises(KeyboardInterrupt):
        _calibrated(ladder, tmp_path / "kept", 4, False)
    for _ in range(2):
        found = _calibrated(ladder, tmp_path / "kept", 4, False)
    assert asked == ["ode", "ode_2", "ode_2", "sde"] and set(found.calibrations) == {"ode", "ode_2", "sde"}
    # Of other networks, or on other pilots, they are no use.
    others = dataclasses.replace(ladder, networks=tuple(map(randomised, ladder.networks)))
    for chosen, pilots in ((others, 4), (others, 8)):
        asked.clear()
        _calibrated(chosen, tmp_path / "kept", pilots, False)
        assert asked == ["ode", "ode_2", "sde"]


@pytest.mark.slow
def test_a_ladder_from_one_file(tmp_path, monkeypatch):
    def one_measured(ladder, **settings):
        # Each calibration compiles for half a minute; how they are measured has its own tests.
        measure = calibrate_ladder if settings.keys().isdisjoint({"method", "sde"}) else stand_in
        return measure(ladder, **settings)

    monkeypatch.setattr("mlem_jax.diffusion._training.train_ladder.calibrate_ladder", one_measured)
    (tmp_path / "config.toml").write_text(TOML)
    images, held_out = tiny_images(64), tiny_images(40, seed=1)
    ladder = train_ladder(tmp_path / "config.toml", tmp_path / "out", images, held_out, progress=False)
    assert [p.name for p in sorted((tmp_path / "out" / "ladder").iterdir())] == [
        "calibration_ode.npz",
        "calibration_ode_2.npz",
        "calibration_sde.npz",
        "card.json",
        "ladder.toml",
        "level_1.eqx",
        "level_2.eqx",
    ]
    distance = ladder.card["held_out_loss"]["to_finest"]
    assert distance[1] == 0 < distance[0]
    # Loading gives the same ladder, and so does the command once it is done.
    np.testing.assert_array_equal(
        arrays(load_ladder(tmp_path / "out" / "ladder").networks), arrays(ladder.networks)
    )
    again = train_ladder(tmp_path / "config.toml", tmp_path / "out", images, held_out)
    np.testing.assert_array_equal(arrays(again.networks), arrays(ladder.networks))
    (tmp_path / "config.toml").write_text(TOML.replace("width = 4", "width = 5"))
    with pytest.raises(ValueError, match="was begun with another configuration"):
        train_ladder(tmp_path / "config.toml", tmp_path / "out", images, held_out)
    with pytest.raises(FileNotFoundError, match="is not a ladder"):
        load_ladder(tmp_path)
    (tmp_path / "out" / "ladder" / "level_1.eqx").write_bytes(b"short")
    with pytest.raises(ValueError, match="does not hold level 1"):
        load_ladder(tmp_path / "out" / "ladder")
