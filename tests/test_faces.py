"""The study of faces: its fits, what it reads, and the whole command on tiny networks."""

import re
import sys
from argparse import Namespace
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import TINY, tiny_config, tiny_images

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import _faces_parts
import _harness
import faces
from _crops import CLASSES, crop, labelled_crops
from _faces import averaged, load_heads, without_finest
from _faces_sizes import LARGE
from _harness import RESULTS
from _level_errors import fit, gammas, level_errors, MEASURES
from _methods import Shared
from PIL import Image

from mlem_jax.diffusion import Ladder, Level, read_config, save_ladder
from mlem_jax.diffusion._ladder import level_sizes
from mlem_jax.diffusion._training import train_networks


def test_gamma_of_an_exact_power_law():
    costs = np.array([1.0, 5.0, 30.0, 100.0])
    found = fit("distance", (1, 2, 3, 4), costs, 3 * costs ** (-1 / 2.5))
    assert found.gamma == pytest.approx(2.5) and found.standard_error == pytest.approx(0, abs=1e-6)
    assert fit("distance", (1, 2, 3, 4), costs, costs).gamma is None
    assert fit("distance", (1, 2), costs[:2], costs[:2] ** -0.5).standard_error is None


def test_standard_error_of_gamma():
    """Student's t with four degrees of freedom: beyond 2.776 with probability 0.05. 4,000 fits with normal errors of
    the logarithms, small enough for gamma to be linear in them; four standard errors of the share."""
    rng = np.random.default_rng(0)
    costs = 5.0 ** np.arange(6)
    outside = []
    for _ in range(4000):
        one = fit("distance", range(6), costs, costs**-0.4 * np.exp(rng.normal(0, 0.01, 6)))
        assert one.gamma is not None and one.standard_error is not None
        outside.append(abs(one.gamma - 2.5) > 2.776 * one.standard_error)
    assert abs(np.mean(outside) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 4000)


def test_levels_that_differ_by_known_amounts():
    """Drifts 0, -y/2 and -y over four steps of -1/2: by Euler's method states grow by 1, 5/4 and 3/2 a step. Drifts
    differ most in the fourth step, where the finest level's state has grown by (3/2)^3."""
    small, large = TINY.networks()
    middle = Level(width=6, folds=(4,), multipliers=(1,), blocks=(1,)).network((4, 4, 1), None, key=jr.key(0))
    ladder = Ladder((small, middle, large), TINY, {}, {})
    levels = tuple(Growing(rate) for rate in (0.0, 0.5, 1.0))
    problem = Shared("", levels, (0.1, 0.3, 1.0), jnp.linspace(3.0, 1.0, 5), None, (4, 4, 1), 2.0)
    rows = level_errors(ladder, problem, tiny_images(4), images=2, seed=0, repeats=1)
    start = float(jnp.sqrt(jnp.mean((2 * jr.normal(jr.key(0), (2, 4, 4, 1))) ** 2)))
    last = start * 1.5**3

    def close(value):
        return pytest.approx(value, rel=1e-5)

    assert [row["distance"] for row in rows] == [close(last), close(last / 2), None]
    assert [row["increment"] for row in rows] == [None, close(last / 2), close(last / 2)]
    effects = [start * (1.5**4 - 1), start * (1.5**4 - 1.25**4)]
    assert [row["effect"] for row in rows] == [*map(close, effects), None]
    used = {one.measure: one.levels for one in gammas(rows)}
    assert used == {"held_out_distance": (1, 2), "distance": (1, 2), "effect": (1, 2), "increment": (2, 3)}


class Growing(eqx.Module):
    rate: float

    def __call__(self, t, y, args):
        return -self.rate * y


def test_a_network_is_read_as_far_as_it_is_trained(tmp_path):
    config = tiny_config(steps=4)
    network = config.networks()[0]
    settings = {"steps": 4, "peak_learning_rate": 1e-2, "save_every": 2, "progress": False}
    ((trained,),), _ = train_networks(config, (network,), tiny_images(), tmp_path, **settings)
    found, steps = averaged(tmp_path, network)
    assert steps == 4
    assert eqx.tree_equal(found, trained)
    with pytest.raises(ValueError, match="another network"):
        averaged(tmp_path, config.networks()[1])
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        averaged(tmp_path / "empty", network)


def test_heads_are_read_in_order(tmp_path):
    for number in range(5):
        Image.new("RGB", (2, 2), (10 * number, 0, 0)).save(tmp_path / f"{number:06d}.png")
    images, held_out = load_heads(tmp_path, 3, 2)
    assert images[:, 0, 0, 0].tolist() == [0, 10, 20] and held_out[:, 0, 0, 0].tolist() == [30, 40]
    with pytest.raises(FileNotFoundError, match=rf"make_heads.py 6 {tmp_path}"):
        load_heads(tmp_path, 4, 2)


def test_own_images_are_read_instead(tmp_path):
    """A folder of pictures of any size; a tenth is held out, and too few are refused with the number needed."""
    for number in range(30):
        Image.new("RGB", (12, 9), (8 * number, 0, 0)).save(tmp_path / f"{number}.jpg")
    arguments = Namespace(data=tmp_path, out=tmp_path / "out")
    size = faces.SIZES["quick"]._replace(training=20, held_out=2)
    few = size._replace(quality=size.quality._replace(images=2))
    images, held_out, words = faces.found_images("quick", few, tiny_config(), arguments)
    assert images.shape == (20, 4, 4, 1) and held_out.shape == (2, 4, 4, 1)
    assert words == f"20 images of {tmp_path}"
    with pytest.raises(ValueError, match="3 images are held out, .* give at least 5120 images"):
        faces.found_images("quick", size, tiny_config(), arguments)


def test_results_of_other_ladders_are_kept(tmp_path, monkeypatch):
    """Those of the same networks: an earlier run's are dropped if its finest network was trained for other steps."""
    for module in (_harness, _faces_parts):
        monkeypatch.setattr(module, "RESULTS", tmp_path)

    def ladders(name, steps):
        none = np.zeros((0, 4, 4, 1))
        about = {"finest_steps": steps}
        task = _faces_parts.Task({}, faces.SIZES["smoke"], none, none, tmp_path, "own", about, False)
        return list(task.write("levels", {name: {"rows": [{"level": 1}]}}))

    assert ladders("matched", 10) == ["matched"]
    assert ladders("independent", 10) == ["matched", "independent"]
    assert (tmp_path / "own_levels.csv").read_text().split() == ["ladder,level", "matched,1", "independent,1"]
    assert ladders("independent", 20) == ["independent"]


def test_a_ladder_that_was_trained_elsewhere_is_measured_alone(tmp_path, monkeypatch, capsys):
    """It keeps its own networks and training, takes the smaller amounts of work, and names its results by its size.
    Settings of training are refused with it."""
    ladder = Ladder(TINY.networks(), TINY, {}, {})
    save_ladder(tmp_path / "ladder", ladder)
    tasks = []
    monkeypatch.setitem(faces.PARTS, "levels", tasks.append)
    monkeypatch.setattr(faces, "found_images", lambda *given: ([], [], "none"))
    monkeypatch.setattr(faces, "with_calibrations", lambda ladder, *others: ladder)

    def run(*more):
        given = ["--quick", "--ladder", str(tmp_path / "ladder"), "--parts", "levels", *more]
        monkeypatch.setattr(sys, "argv", ["faces", *given])
        faces.main()

    run()
    (task,) = tasks
    assert list(task.ladders) == ["matched"] and task.ladders["matched"].config == TINY
    assert task.size == LARGE and task.about["training"]["steps"] == TINY.training.steps
    assert task.stem == f"faces_quick_{ladder.flops()[-1] / 1e6:.0f}_mflop"
    for more in (["--ladders", "matched"], ["--checkpoint", str(tmp_path)]):
        with pytest.raises(SystemExit):
            run(*more)
        assert "leave out --checkpoint and --ladders" in capsys.readouterr().err


def test_the_ladder_is_the_one_that_was_asked_for():
    """The MFLOP that `faces.toml` says, a factor of 4 to 6 apart; the two finest can represent any image:
    their channels outnumber the 48 numbers of a patch."""
    config = read_config(faces.CONFIG)
    mflops = np.array([flops for _, _, flops in level_sizes(config)]) / 1e6
    np.testing.assert_allclose(mflops, [1.6, 7.0, 31.8, 148.7, 595.0], rtol=0.01)
    assert np.all((mflops[1:] / mflops[:-1] > 4) & (mflops[1:] / mflops[:-1] < 6))
    assert all(level.width > 3 * level.folds[0] ** 2 for level in config.levels[-2:])


def test_the_ladder_without_its_finest_level():
    networks = TINY.networks()
    card = {"parameters": [1, 2], "flops_per_image": [10, 20], "training_images": 5}
    found = without_finest(Ladder(networks, TINY, card, {}))
    assert found.networks == networks[:1] and found.config.levels == TINY.levels[:1]
    assert found.card == {"parameters": [1], "flops_per_image": [10], "training_images": 5}


def test_a_crop_is_a_place_and_a_turn():
    """Pixels are numbered by rows in an image of 4 x 4; the middle crop is its inner 2 x 2."""
    image = np.arange(16.0).reshape(1, 4, 4, 1)
    assert crop(image, 0)[0, ..., 0].tolist() == [[0, 1], [4, 5]]
    assert crop(image, 4)[0, ..., 0].tolist() == [[5, 6], [9, 10]]
    assert crop(image, 8, 1)[0, ..., 0].tolist() == [[11, 15], [10, 14]]
    crops, labels = labelled_crops(np.repeat(image, 50, 0), seed=3)
    assert set(labels) <= set(range(CLASSES)) and len(set(labels)) > 20
    for found, label in zip(crops, labels, strict=True):
        place, turns = divmod(label, 4)
        row, column = divmod(place, 3)
        np.testing.assert_array_equal(np.rot90(found, -turns)[0, 0, 0], 4 * row + column)


@pytest.mark.slow
def test_the_whole_study_runs(tmp_path, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()}
    # Distributions take minutes; their measures and fits have tests of their own.
    runs = (["matched", "--parts", "levels", "fitted", "methods"], ["independent", "--parts", "levels"])
    for arguments in runs:
        monkeypatch.setattr(
            sys, "argv", ["faces", "--smoke", "--out", str(tmp_path), "--ladders", *arguments]
        )
        faces.main()
    assert {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()} == before
    printed = capsys.readouterr().out
    # Both ladders, and in each all four measures.
    for measure in MEASURES:
        assert len(re.findall(rf"^\W*{measure} of levels", printed, re.MULTILINE)) == 2
    assert printed.count("Cost to reach the error of Euler with 8 steps") == 1
    assert len(re.findall(r"^\d+ of \d+ within 15 per cent", printed, re.MULTILINE)) == 1
    assert "nan" not in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "finest",
        "independent_20",
        "matched_20_finest_20",
        "sheets",
    ]
