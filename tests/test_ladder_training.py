"""Training that starts from an earlier ladder, and the noise levels of distillation."""

import math

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import arrays, calibrated_ladder, randomised, stand_in, tiny_config, tiny_images
from problems import as_user, assert_mean

from mlem_jax.diffusion import (
    load_ladder,
    save_ladder,
    train_ladder,
    VariancePreserving,
)
from mlem_jax.diffusion._training import train_networks
from mlem_jax.diffusion._training.batches import held_out_losses, noised


@pytest.fixture(scope="module")
def ladder():
    return calibrated_ladder()


HEAD = 'name = "tiny"\nshape = [4, 4, 1]\n'
TRAINING = "[training]\nsteps = 20\nmatch_steps = 20\nbatch_size = 8\nwarmup_steps = 5\n"
LEVEL = "[[levels]]\nwidth = {}\nfolds = [4]\nmultipliers = [1]\nblocks = [1]\n"
TEXT = HEAD + TRAINING + LEVEL.format(4) + LEVEL.format(8)


def match_on(folder, start, text, monkeypatch):
    """`train_ladder` from an earlier ladder, without the time that calibrations take."""
    monkeypatch.setattr("mlem_jax.diffusion._training.train_ladder.calibrate_ladder", stand_in)
    (folder / "config.toml").write_text(text)
    images, held_out = tiny_images(64), tiny_images(40, seed=1)
    with as_user():
        return train_ladder(
            folder / "config.toml", folder / "out", images, held_out, start=start, progress=False
        )


@pytest.fixture(scope="module")
def start(ladder, tmp_path_factory):
    """The ladder as it comes from its files."""
    folder = tmp_path_factory.mktemp("start") / "ladder"
    save_ladder(folder, ladder)
    return load_ladder(folder)


@pytest.mark.slow
def test_the_finest_level_is_kept_and_the_smaller_matched_to_it(start, tmp_path, monkeypatch):
    before = arrays(start.networks)
    text = TEXT.replace("match_steps = 20", "match_steps = 150\nmatch_log_normal = [0.5, 1.0]")
    found = match_on(tmp_path, start, text, monkeypatch)
    # Bit for bit, and nothing was trained for it.
    np.testing.assert_array_equal(arrays(found.networks[1]), arrays(start.networks[1]))
    assert not (tmp_path / "out" / "finest").exists()
    lines = [line.split(",") for line in (tmp_path / "out" / "losses.csv").read_text().splitlines()]
    assert lines[0] == ["stage", "step", "level_1", "level_2"]
    assert [line[:2] for line in lines[1:]] == [["smaller", str(n)] for n in (50, 100, 150)]
    # Nearer to the finest than it was, on images it has not seen.
    was = held_out_losses(found.config, start.networks, tiny_images(40, seed=1))["to_finest"][0]
    assert 0 < found.card["held_out_loss"]["to_finest"][0] < 0.7 * was
    # The networks given are the caller's still.
    np.testing.assert_array_equal(arrays(start.networks), before)


@pytest.mark.slow
def test_levels_that_the_earlier_ladder_has_go_on_from_there(ladder, tmp_path, monkeypatch):
    # Steps too small to be seen, and a level that the earlier ladder has not.
    text = HEAD + TRAINING + "match_learning_rate = 1e-12\n" + "".join(map(LEVEL.format, (3, 4, 8)))
    found = match_on(tmp_path, ladder, text, monkeypatch)
    begun = (found.config.networks()[0], *ladder.networks)
    np.testing.assert_allclose(arrays(found.networks), arrays(begun), rtol=2**-10, atol=1e-6)
    # Although the levels are rounded when they are written, the calibrations are those of the files.
    for sde in (False, True):
        found.calibration(sde=sde).require(found.term(sde=sde).levels, jnp.zeros((4, 4, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, message",
    [
        (TEXT.replace("width = 8", "width = 9"), r"finest level is Level\(width=8, .*Level\(width=9, "),
        (HEAD + TRAINING + LEVEL.format(4), r"finest level is Level\(width=8, .*Level\(width=4, "),
        (TEXT.replace("[training]", 'prediction = "eps"\n[training]'), r"\); prediction differ too\.$"),
        (TEXT.replace("[training]", "[process]\ns_max = 9.0\n[training]"), r"\); process differ too\.$"),
        (TEXT.replace("match_steps = 20", "match_steps = 0"), "write match_steps of at least 1"),
    ],
    ids=["other sizes", "fewer levels", "prediction", "process", "no matching"],
)
def test_an_earlier_ladder_that_does_not_fit_is_refused(ladder, tmp_path, monkeypatch, text, message):
    with pytest.raises(ValueError, match=message):
        match_on(tmp_path, ladder, text, monkeypatch)
    # Before anything was begun that would stand in the way of the right call.
    assert not (tmp_path / "out").exists()


def test_levels_that_are_not_cheapest_first_and_images_that_do_not_fit(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(HEAD + TRAINING + LEVEL.format(8) + LEVEL.format(4))
    images = tiny_images(64)
    with pytest.raises(ValueError, match=r"take \[\d+, \d+\] FLOPs per image; write them cheapest first"):
        train_ladder(path, tmp_path / "out", images, images)
    path.write_text(HEAD + TRAINING + LEVEL.format(4))
    message = r"held-out images are .*one image of shape \(4, 4, 1\) is needed"
    for held_out in (images[:0], images[:, :3]):
        with as_user(), pytest.raises(ValueError, match=message):
            train_ladder(path, tmp_path / "out", images, held_out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "mean, deviation", [(0.5, 1.6), (4.0, 2.0), (-4.0, 0.5)], ids=["inside", "cut above", "cut below"]
)
def test_log_normal_noise_levels_have_the_truncated_normals_mean(mean, deviation):
    """z-test at 5 standard errors, n = 40,000, seed 3."""
    process = VariancePreserving()
    s = process.draw_s(jr.key(3), (40_000,), log_normal=(mean, deviation))
    assert process.s_min * (1 - 1e-5) <= s.min() and s.max() <= process.s_max * (1 + 1e-5)
    a, b = ((math.log(end) - mean) / deviation for end in (process.s_min, process.s_max))
    density = [math.exp(-(u**2) / 2) / math.sqrt(2 * math.pi) for u in (a, b)]
    mass = (math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2))) / 2
    assert_mean(jnp.log(s), mean + deviation * (density[0] - density[1]) / mass)


def matched(folder, log_normal):
    """Mean squared distance of a matched level to its teacher, at noise levels about `exp(-2)`."""
    config = tiny_config(match_log_normal=log_normal)
    networks = config.networks()
    teacher = randomised(networks[1])
    (trained,), _ = train_networks(
        config,
        networks[:1],
        tiny_images(),
        folder,
        steps=200,
        peak_learning_rate=3e-3,
        teacher=teacher,
        progress=False,
    )
    x, log_s, _ = noised(config, jnp.asarray(tiny_images(500)), jr.key(9), log_normal=(-2.0, 0.2))
    return float(jnp.mean((trained[0](x, log_s) - teacher(x, log_s)) ** 2))


@pytest.mark.slow
def test_a_level_is_matched_best_where_its_noise_levels_were_put(tmp_path):
    assert matched(tmp_path / "there", (-2.0, 0.2)) < 0.7 * matched(tmp_path / "elsewhere", (3.0, 0.2))


@pytest.mark.slow
def test_training_on_data_keeps_the_schedules_noise_levels(tmp_path):
    trained = []
    for log_normal in (None, (-2.0, 0.2)):
        config = tiny_config(match_log_normal=log_normal)
        (networks,), _ = train_networks(
            config,
            config.networks()[:1],
            tiny_images(),
            tmp_path / str(len(trained)),
            steps=5,
            peak_learning_rate=1e-3,
            progress=False,
        )
        trained.append(arrays(networks))
    np.testing.assert_array_equal(*trained)
