"""The distance between sets of images as distributions, in Python and by command."""

import re

import numpy as np
import pytest
from problems import as_user
from typer.testing import CliRunner

from mlem_jax._cli import app as _cli
from mlem_jax.diffusion import frechet_distance

RNG = np.random.default_rng(0)


def pixels(images):
    return np.asarray(images).reshape(len(images), -1)


def with_moments(mean, covariance, count=50):
    """Images of one row whose mean and covariance are exactly these."""
    raw = RNG.normal(size=(count, len(mean)))
    raw -= raw.mean(0)
    raw = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw.T))).T
    values = mean + raw @ np.linalg.cholesky(covariance).T
    return values.reshape(count, 1, len(mean), 1).astype(np.float32)


def test_it_is_the_distance_of_two_normal_distributions():
    """Covariances that commute: the squared distance is that of means and of the roots of the eigenvalues."""
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    one = with_moments([0.1, 0.2], turn @ np.diag([0.04, 0.09]) @ turn.T)
    other = with_moments([0.4, 0.2], turn @ np.diag([0.25, 0.01]) @ turn.T)
    expected = 0.3**2 + (0.2 - 0.5) ** 2 + (0.3 - 0.1) ** 2
    assert frechet_distance(one, other, features=pixels, batch_size=7) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(one, one, features=pixels) == pytest.approx(0, abs=1e-6)


def test_covariances_that_do_not_commute():
    """For 2 x 2 matrices tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)), with M = C1 C2."""
    first, second = np.array([[0.3, 0.1], [0.1, 0.2]]), np.array([[0.1, -0.05], [-0.05, 0.4]])
    product = first @ second
    middle = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(first) + np.trace(second) - 2 * middle
    found = frechet_distance(
        with_moments([0.0, 0.0], first), with_moments([0.0, 0.0], second), features=pixels
    )
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("count", "features", "message"),
    [
        (1, pixels, "at least two images"),
        (5, lambda x: x, r"returned an array of shape \(5, 1, 2, 1\) for 5 images"),
        (5, lambda x: np.full((len(x), 3), np.nan), "not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(count, features, message):
    images = np.zeros((count, 1, 2, 1), np.float32)
    with as_user(), pytest.raises(ValueError, match=message):
        frechet_distance(images, images, features=features)


def run(*arguments):
    result = CliRunner().invoke(_cli.app, ["distance", *map(str, arguments)], env={"COLUMNS": "300"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, re.sub(r"[\s│]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", result.output))


def test_by_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, other = RNG.uniform(-1, 1, (2, 30, 2, 2, 1)).astype(np.float32)
    (tmp_path / "samples").mkdir()
    np.savez(tmp_path / "samples" / "samples.npz", images=one)
    np.save(tmp_path / "other.npy", np.round((other + 1) * 127.5).astype(np.uint8))
    (tmp_path / "halves.py").write_text("def left(x):\n    return x[:, :, 0, 0]\n\nnumber = 3\n")
    for name, features in (("pixels", pixels), ("halves:left", lambda x: x[:, :, 0, 0])):
        code, text = run("samples", "other.npy", "--features", name)
        expected = frechet_distance(one, other, features=features)
        (found,) = re.findall(rf"Frechet distance of {name}: ([\d.e-]+) \(30 and 30 images\)", text)
        assert code == 0 and float(found) == pytest.approx(expected, rel=0.1), text
    for arguments, message in (
        (("samples", "nowhere", "--features", "pixels"), "nowhere holds no images"),
        (("samples", "halves.py", "--features", "pixels"), "halves.py has no array of images"),
        (("samples", "other.npy", "--features", "halves"), "MODULE:FUNCTION is expected"),
        (("samples", "other.npy", "--features", "halves:right"), "cannot be imported"),
        (("samples", "other.npy", "--features", "halves:number"), "is a int; a function is expected"),
    ):
        code, text = run(*arguments)
        assert code == 2 and message in text, text
