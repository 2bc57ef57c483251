"""The command `sample` from images: image to image, known pixels, previews, and a sentence for what will not do."""

import re

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image
from pretrained_problems import write_unet
from typer.testing import CliRunner

from mlem_jax._cli import app as _cli


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network for 4 x 4 pixels in colour; pictures of it, and files that are none."""
    folder = tmp_path_factory.mktemp("images")
    write_unet(folder / "network", 4)
    generator = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for name in "ab":
        pixels = generator.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{name}.png")
    mask = np.zeros((4, 4), np.uint8)
    mask[:2] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    np.save(folder / "floats.npy", generator.uniform(-1, 1, (3, 4, 4, 3)).astype(np.float32))
    np.save(folder / "integers.npy", np.zeros((4, 4, 3), int))
    (folder / "text.png").write_text("no picture")
    (folder / "empty").mkdir()
    return folder


def run(files, *arguments):
    common = ("sample", "--network", files / "network", "--steps", 6)
    result = CliRunner().invoke(_cli.app, list(map(str, (*common, *arguments))), env={"COLUMNS": "300"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, re.sub(r"[\s│]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", result.output))


def arrays(folder):
    with np.load(folder / "samples.npz") as file:
        return dict(file)


def pixels(path):
    return np.asarray(Image.open(path), np.float32) / 127.5 - 1


def test_at_noise_level_0_the_images_come_back(files, tmp_path):
    code, text = run(
        files, "--n", 2, "--start-from", files / "pictures", "--start-at", 0, "--out", tmp_path / "out"
    )
    assert code == 0, text
    expected = np.stack([pixels(files / "pictures" / f"{name}.png") for name in "ab"])
    np.testing.assert_allclose(arrays(tmp_path / "out")["images"], expected, atol=1e-6)


def test_samples_start_from_an_image_and_previews_show_the_way(files, tmp_path):
    """The first preview is the image with noise of a level of at most `--start-at`, as in the file of trajectories."""
    picture = files / "pictures" / "a.png"
    code, text = run(
        files,
        *("--n", 400, "--start-from", picture, "--start-at", 3, "--previews", 3, "--batch-size", 400),
        *("--out", tmp_path / "out"),
    )
    assert code == 0 and "previews.png" in text, text
    found = arrays(tmp_path / "out")["trajectories"]
    assert found.shape[:2] == (400, 3)
    noise = found[:, 0] - pixels(picture)
    # 19,200 normal numbers: 5 standard errors.
    deviation = noise.std()
    assert 0.05 < deviation <= 3.1 and abs(noise.mean()) < 5 * deviation / np.sqrt(noise.size)
    assert imread(tmp_path / "out" / "previews.png").shape[:2] == (8 * 4, 3 * 4)


def test_known_pixels_are_kept(files, tmp_path):
    picture = files / "pictures" / "b.png"
    code, text = run(
        files, "--n", 2, "--known", picture, "--mask", files / "mask.png", "--out", tmp_path / "out"
    )
    assert code == 0, text
    found = arrays(tmp_path / "out")["images"]
    np.testing.assert_array_equal(found[:, :2], np.stack([pixels(picture)[:2]] * 2))
    assert np.all(found[:, 2:] != pixels(picture)[2:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--start-from pictures", "--start-from needs --start-at; give both"),
        ("--start-at 1", "--start-at needs --start-from"),
        ("--known pictures", "--known needs --mask"),
        ("--start-from nowhere --start-at 1", "nowhere does not exist"),
        ("--start-from text.png --start-at 1", "text.png cannot be read as a picture"),
        ("--start-from empty --start-at 1", "empty holds no pictures"),
        ("--start-from integers.npy --start-at 1", "holds int64; bytes, or numbers from -1 to 1"),
        ("--start-from floats.npy --start-at 1", r"shape \(3, 4, 4, 3\); one image of shape \(4, 4, 3\)"),
        ("--start-from pictures --start-at -1", "--start-at"),
        ("--known pictures --mask floats.npy", "holds float32; booleans are expected"),
        ("--previews 1", "--previews"),
    ],
)
def test_what_will_not_do_is_answered_in_a_sentence(files, tmp_path, arguments, message):
    words = [files / word if (files / word).exists() else word for word in arguments.split()]
    code, text = run(files, *words, "--n", 2, "--out", tmp_path / "out")
    assert code == 2 and re.search(message, text), text
    assert not (tmp_path / "out").exists()
