"""The command `train`: from IDX files and from a folder of pictures, by a TOML file and by FLOPs."""

import dataclasses

import equinox as eqx
import numpy as np
import pytest
from diffusion_problems import arrays, stand_in, write_idx
from PIL import Image
from typer.testing import CliRunner

from mlem_jax._cli import app as _cli
from mlem_jax.diffusion import DiTLevel, FlowMatching, Level, load_ladder, read_config, Training
from mlem_jax.diffusion._ladder import config_text, count_flops, ladder_of_flops

LEVEL = "[[levels]]\nwidth = {}\nfolds = [4]\nmultipliers = [1]\nblocks = [1]\n"
TEXT = (
    'name = "t"\nshape = [4, 4, 1]\n[training]\nsteps = 3\nmatch_steps = 3\nbatch_size = 4\nwarmup_steps = 1\n'
    + "".join(map(LEVEL.format, (2, 6)))
)


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr("mlem_jax.diffusion._training.train_ladder.calibrate_ladder", stand_in)

    def run(*arguments):
        return CliRunner().invoke(_cli.app, ["train", *map(str, arguments)], env={"COLUMNS": "300"})

    return run


@pytest.fixture
def pictures(tmp_path):
    """A folder of 80 pictures of 10 x 9, and one that is none."""
    (tmp_path / "pictures").mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (80, 10, 9, 3))):
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    (tmp_path / "pictures" / "bad.jpg").write_bytes(b"no picture")
    return tmp_path / "pictures"


@pytest.mark.slow
def test_from_idx_files_and_from_an_earlier_ladder(run, tmp_path):
    (tmp_path / "ladder.toml").write_text(
        TEXT.replace("[training]\n", "[training]\nmore_ema_decays = [0.5]\n")
    )
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4))
    write_idx(tmp_path / "data", images)
    write_idx(tmp_path / "data", images, train=False)
    common = ("--config", tmp_path / "ladder.toml", "--data", tmp_path / "data")
    result = run("--out", tmp_path / "run", "--tensorboard", *common)
    assert result.exit_code == 0, result.output
    assert "12 images to train on, 12 held out." in result.output and "distance to finest" in result.output
    assert "run/ladder-ema-0.5 (held-out losses " in result.output
    assert all(list((tmp_path / "run" / "tensorboard" / stage).iterdir()) for stage in ("finest", "smaller"))
    again = run("--out", tmp_path / "more", "--from", tmp_path / "run" / "ladder", *common)
    assert again.exit_code == 0, again.output
    # The smaller level's distance before it was matched on: what it was when the first run had ended.
    assert "before" in again.output and "before" not in result.output
    cards = [load_ladder(tmp_path / name / "ladder").card for name in ("run", "more")]
    np.testing.assert_allclose(
        cards[1]["to_finest_before"], cards[0]["held_out_loss"]["to_finest"], rtol=1e-3, atol=1e-9
    )
    assert cards[1]["held_out_loss"]["to_finest"][0] != cards[1]["to_finest_before"][0]
    first, second = (load_ladder(tmp_path / name / "ladder").networks for name in ("run", "more"))
    assert len(first) == len(second) == 2
    np.testing.assert_array_equal(arrays(first[-1]), arrays(second[-1]))
    missing = run("--out", tmp_path / "run", *common[:2], "--data", tmp_path / "nowhere")
    assert missing.exit_code == 2 and "IDX files is expected" in missing.output
    # The finest of the two alone.
    one = run("--out", tmp_path / "one", *common, "--levels", 2, "--pilots", 0)
    assert one.exit_code == 0, one.output
    assert f"mlem_jax sample --checkpoint {tmp_path / 'one'} --steps" in one.output
    assert "mlem_jax sample" in result.output
    assert not load_ladder(tmp_path / "one" / "ladder").calibrations
    # Both, to be calibrated later.
    later = run("--out", tmp_path / "later", *common, "--pilots", 0)
    assert later.exit_code == 0 and "mlem_jax calibrate --checkpoint" in later.output
    assert [level.width for level in read_config(tmp_path / "one" / "config.toml").levels] == [6]


@pytest.mark.slow
def test_from_pictures_by_flops(run, tmp_path, pictures):
    out = tmp_path / "run"
    arguments = ("--data", pictures, "--shape", "8,8,3", "--mflops", "0.1,0.2", "--steps", 4, "--out", out)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "72 images to train on, 8 held out." in result.output
    assert "1 files cannot be read and are left out: bad.jpg (UnidentifiedImageError" in result.output
    # With which the run can be repeated.
    config = read_config(out / "config.toml")
    assert config.name == "run" and config.shape == (8, 8, 3)
    assert (config.training.steps, config.training.match_steps, config.training.sheet_every) == (4, 2, 1)
    assert sorted(p.name for p in (out / "sheets").glob("*.png")) == [
        *(f"finest-{n:08d}.png" for n in (1, 2, 3, 4)),
        *(f"smaller-{n:08d}.png" for n in (1, 2)),
    ]
    ladder = load_ladder(out / "ladder")
    assert ladder.card["training_images"] == 72
    assert run(*arguments).exit_code == 0
    other = run(*arguments[:4], "--mflops", "0.1,0.3", *arguments[6:])
    assert other.exit_code == 2 and "was begun with another configuration" in other.output


def test_what_does_not_go_together_is_said_before_anything_is_written(run, tmp_path, pictures):
    (tmp_path / "ladder.toml").write_text(TEXT)
    (tmp_path / "empty").mkdir()
    file, out = ("--config", tmp_path / "ladder.toml"), tmp_path / "out"
    made = ("--data", pictures, "--mflops")
    for arguments, message in (
        (("--mflops", "1,2"), "write for example --shape 64,64,3"),
        ((*made, "1,2", "--shape", "8,8"), "height, width and channels are expected"),
        ((*made, "1,2", "--shape", "8,8,a"), "--shape 8,8,a: integers are expected"),
        ((*made, "1;2", "--shape", "8,8,3"), "--mflops 1;2: numbers are expected"),
        ((*made, "2,1", "--shape", "8,8,3"), "increasing positive numbers"),
        ((*made, "1e-4", "--shape", "8,8,3"), "too small for images of 8 x 8; at least 0.0"),
        ((*made, "1", "--shape", "9,9,3"), "cannot be folded"),
        ((*made, "1", "--shape", "8,8,3", *file), "not both"),
        ((*file, "--shape", "8,8,3"), "--shape is for --mflops"),
        ((*file, "--steps", "5"), "--steps is for --mflops"),
        ((*file, "--levels", "2,1"), "increasing numbers from 1 to 2"),
        ((*file, "--levels", "3"), "increasing numbers from 1 to 2"),
        ((*file, "--levels", "a"), "--levels a: integers"),
        ((*file, "--data", tmp_path / "empty"), "hold no pictures"),
        (("--config", tmp_path / "nowhere.toml"), "nowhere.toml"),
    ):
        result = run("--out", out, *arguments)
        assert result.exit_code == 2 and message in result.output, result.output
        assert not out.exists()
    # A place where nothing can be written, before pictures are decoded.
    occupied = tmp_path / "ladder.toml" / "run"
    result = run("--out", occupied, *file, "--data", pictures)
    assert result.exit_code == 2 and "Cannot write to" in result.output and "another --out" in result.output


@pytest.mark.slow
def test_a_level_of_the_flops_of_a_shipped_one_is_of_its_architecture():
    assert ladder_of_flops((28, 28, 1), [5.625]).levels == (load_ladder().config.levels[1],)


@pytest.mark.slow
def test_small_levels_are_of_dense_layers():
    """1.04 MFLOP are the least with 16 channels on 7 x 7 places: the shipped first level, with a filter."""
    shipped = dataclasses.replace(load_ladder().config.levels[0], input_skip=None)
    smaller, first = ladder_of_flops((28, 28, 1), [0.3, 1.04]).levels
    assert first == shipped
    # The whole image at once. 57 channels of 784 pixels, twice, are 179 thousand FLOPs; the blocks have the rest.
    assert smaller.folds == (28,) and 45 < smaller.width < 65
    # 10 x 6 pixels are 5 x 3 places, whose sides have no common factor.
    assert ladder_of_flops((10, 6, 1), [3]).levels[0].folds == (2,)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(64, 64, 3), (10, 6, 1)])
def test_levels_have_the_flops_asked_for(shape):
    targets = (3.0, 12.0, 80.0)
    config = ladder_of_flops(shape, targets)
    for network, target in zip(eqx.filter_eval_shape(config.networks), targets, strict=True):
        assert count_flops(network) == pytest.approx(1e6 * target, rel=0.15)


def test_a_description_reads_as_it_was_written(tmp_path):
    made = ladder_of_flops((8, 8, 3), (0.5, 2), name='a "b"', training=Training(match_log_normal=(0.5, 1.6)))
    made = dataclasses.replace(made, classes=3, levels=(*made.levels, DiTLevel(24, depth=2)))
    text = config_text(made).replace('kind = "variance_preserving"', 'kind = "flow_matching"\nnoise_at = 0')
    text = text.replace("s_max = 80.0", "s_max = 60.0").replace('prediction = "v"', 'prediction = "x0"')
    (tmp_path / "a.toml").write_text(text)
    config = read_config(tmp_path / "a.toml")
    assert config.process == FlowMatching(s_max=60.0, noise_at=0) and config.levels == made.levels
    assert config.name == 'a "b"' and config.training == made.training
    assert [type(level) for level in config.levels] == [Level, Level, DiTLevel] and config.classes == 3
    (tmp_path / "b.toml").write_text(config_text(config))
    assert read_config(tmp_path / "b.toml") == config
