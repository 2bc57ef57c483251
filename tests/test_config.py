"""The TOML file of a ladder: read as written, and refused with the place and the remedy."""

import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import arrays
from problems import as_user

from mlem_jax._cli import _CONFIG
from mlem_jax.diffusion import read_config, Training, VariancePreserving

GOOD = """
name = "small"
shape = [8, 8, 1]
prediction = "eps"

[process]
s_min = 0.02

[training]
steps = 12
match_log_normal = [0.5, 1.6]

[[levels]]
width = 4

[[levels]]
width = 8
folds = [2, 2]
multipliers = [1, 3]
blocks = [1, 1]
"""


def read(tmp_path, text):
    path = tmp_path / "ladder.toml"
    path.write_text(text)
    with as_user():
        return read_config(path)


def test_what_is_written_is_read_and_the_rest_has_defaults(tmp_path):
    config = read(tmp_path, GOOD)
    assert config.shape == (8, 8, 1) and config.prediction == "eps" and len(config.levels) == 2
    assert config.process == VariancePreserving(s_min=0.02)
    assert config.levels[1].multipliers == (1, 3) and config.levels[0].folds == (2, 2)
    assert config.training == Training(steps=12, match_log_normal=(0.5, 1.6))


def test_networks_depend_on_the_seed_alone(tmp_path):
    config = read(tmp_path, GOOD)
    again = read(tmp_path, GOOD)
    other = read(tmp_path, GOOD.replace("steps = 12", "steps = 12\nseed = 1"))
    for a, b, c in zip(config.networks(), again.networks(), other.networks(), strict=True):
        np.testing.assert_array_equal(arrays(a), arrays(b))
        assert not np.allclose(arrays(a), arrays(c))


def test_the_shipped_configuration_is_four_levels():
    assert len(read_config(_CONFIG).levels) == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "small"', "", r"write name = \.\.\."),
        ('name = "small"', 'name = "small"\ncolour = 1', r"\['colour'\], which is not known; known are"),
        ('name = "small"', "name = ", "is not valid TOML"),
        ("steps = 12", "steps = 0", r"\[training\] of .*: steps = 0; an integer of at least 1"),
        ("steps = 12", "steps = 1.5", "steps = 1.5; an integer"),
        ("steps = 12", "learning_rate = -1e-3", "learning_rate = -0.001; a positive number"),
        ("steps = 12", "ema_decay = 1.0", r"ema_decay = 1.0; a number in \[0, 1\)"),
        ("[0.5, 1.6]", "[0.5]", "the mean and the positive standard deviation"),
        ("[0.5, 1.6]", "[0.5, -1.0]", "the mean and the positive standard deviation"),
        ('"eps"', '"noise"', "prediction = 'noise' is not known; write one of"),
        ("s_min = 0.02", "s_min = 100.0", r"\[process\] of .*0 < s_min < s_max"),
        ("width = 8", "", r"\[\[levels\]\] number 2 of .* incomplete: write width"),
        ("blocks = [1, 1]", "blocks = [1]", r"\[\[levels\]\] number 2"),
        ("folds = [2, 2]", "folds = [3, 2]", r"\[\[levels\]\] number 2"),
    ],
)
def test_bad_files(tmp_path, old, new, message):
    assert GOOD.count(old) == 1
    with pytest.raises(ValueError, match=message):
        read(tmp_path, GOOD.replace(old, new))


def test_a_file_without_levels(tmp_path):
    with pytest.raises(ValueError, match=r"has no \[\[levels\]\] tables"):
        read(tmp_path, GOOD[: GOOD.index("[[levels]]")])


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_config(tmp_path / "nowhere.toml")


def test_noise_levels_for_matching_are_log_normal_inside_the_range():
    # Key 3, 40,000 draws: the mean of log s has a standard error of 0.0075, its deviation of 0.0053;
    # 5 of them. The range cuts off less than 1e-5 of this normal distribution.
    process = VariancePreserving(s_min=0.001, s_max=1000.0)
    log_s = np.log(process.draw_s(jr.key(3), (40_000,), log_normal=(0.5, 1.5)))
    assert abs(log_s.mean() - 0.5) < 5 * 0.0075 and abs(log_s.std() - 1.5) < 5 * 0.0053
    narrow = VariancePreserving(s_min=0.5, s_max=2.0).draw_s(jr.key(3), (1000,), log_normal=(0.5, 1.5))
    assert np.all((narrow >= 0.5 * 0.999) & (narrow <= 2.0 * 1.001))
