"""Images and labels from arrays and IDX files."""

import numpy as np
import pytest
from data_problems import all_of, load, RNG, write
from diffusion_problems import write_idx

from mlem_jax.diffusion._data import as_floats


@pytest.mark.parametrize("kind", ["npy", "npz", "grey", "floats"])
def test_arrays(tmp_path, kind):
    pixels = RNG.integers(0, 256, (30, 6, 5, 1 if kind == "grey" else 3)).astype(np.uint8)
    array = as_floats(pixels) if kind == "floats" else pixels
    path = tmp_path / ("a.npz" if kind == "npz" else "a.npy")
    if kind == "npz":
        np.savez_compressed(path, images=array)
    else:
        np.save(path, array[..., 0] if kind == "grey" else array)
    data = load(path, pixels.shape[1:])
    assert len(data.images) == 27 and len(data.held_out) == 3 and data.images.dtype == array.dtype
    assert all_of(data) == sorted(tuple(x.ravel()) for x in array)
    np.testing.assert_array_equal(load(path, pixels.shape[1:]).held_out, data.held_out)


def test_arrays_that_cannot_be_used_say_why(tmp_path):
    good = np.zeros((20, 4, 4, 1), np.uint8)
    path = tmp_path / "a.npy"
    for array, message in (
        (np.zeros((20, 4, 5, 1), np.uint8), r"shape \(20, 4, 5, 1\).*\(n, 4, 4, 1\) is expected"),
        (np.zeros((20, 1, 4, 4), np.uint8), r"shape \(20, 1, 4, 4\).*height, width, channels"),
        (np.zeros(7, np.uint8), r"an array of shape \(7,\)"),
        (good[:1], "holds 1 images; at least 2"),
        (good[:0], "holds 0 images"),
        (good.astype(np.int64), r"type int64; bytes .*astype\(numpy.uint8\)"),
        (np.full(good.shape, 0.5), r"from 0.5 to 0.5; -1 .black. to 1 .white. is expected.*2 \* images - 1"),
        (np.linspace(-2, 1, 320).reshape(good.shape), "from -2 to 1"),
        (np.full(good.shape, np.nan), "not finite: 20 of 20 images"),
        (np.array([{}]), "cannot be used: .*Python objects"),
    ):
        np.save(path, array)
        with pytest.raises(ValueError, match=message):
            load(path, (4, 4, 1))
    np.savez(tmp_path / "two.npz", train=good, test=good)
    with pytest.raises(ValueError, match=r"holds 2 arrays, \['train', 'test'\]; one is expected"):
        load(tmp_path / "two.npz", (4, 4, 1))
    for content in (b"", b"<html>404</html>", (tmp_path / "two.npz").read_bytes()[:100]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="a.npy cannot be used"):
            load(path, (4, 4, 1))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist. A folder of pictures"):
        load(tmp_path / "nowhere", (4, 4, 1))


def test_idx_files_keep_their_own_halves(tmp_path):
    pixels = RNG.integers(0, 256, (5, 4, 4))
    write_idx(tmp_path, pixels)
    write_idx(tmp_path, pixels[:2], train=False, compress=False)
    data = load(tmp_path, (4, 4, 1))
    assert data.images.shape == (5, 4, 4, 1) and data.held_out.shape == (2, 4, 4, 1)
    with pytest.raises(ValueError, match=r"array of shape \(5, 4, 4, 1\).*for images of shape \(28, 28, 1\)"):
        load(tmp_path, (28, 28, 1))


def test_bytes_are_scaled_like_idx_images():
    values = as_floats(np.array([[[[0], [255], [51]]]], np.uint8))
    np.testing.assert_allclose(values.ravel(), [-1, 1, -0.6], rtol=1e-6)
    assert values.dtype == np.float32


def test_labels_stay_with_their_images(tmp_path):
    labels = np.arange(30)
    pixels = np.broadcast_to(labels[:, None, None, None], (30, 4, 4, 1)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels)
    data = load(tmp_path / "a.npz", (4, 4, 1), labels=True)
    np.testing.assert_array_equal(data.images[:, 0, 0, 0], data.labels)
    np.testing.assert_array_equal(data.held_out[:, 0, 0, 0], data.held_out_labels)
    assert len(data.labels) == 27
    # Not asked for, they may be there.
    assert load(tmp_path / "a.npz", (4, 4, 1)).labels is None


def test_labels_that_are_not_there_are_said(tmp_path):
    for name in ("a.png", "b.png"):
        write(tmp_path / "pictures" / name, np.zeros((6, 5, 3)))
    pixels = np.zeros((20, 4, 4, 1), np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    np.savez(tmp_path / "one.npz", images=pixels)
    np.savez(tmp_path / "few.npz", images=pixels, labels=np.arange(19))
    np.savez(tmp_path / "real.npz", images=pixels, labels=np.zeros(20))
    write_idx(tmp_path / "idx", pixels[..., 0])
    write_idx(tmp_path / "idx", pixels[..., 0], train=False)
    for path, message in (
        (tmp_path / "pictures", "lie in no subfolder.*leave classes out"),
        (tmp_path / "a.npy", r"holds no labels.*numpy.savez\(FILE, images=..., labels=...\)"),
        (tmp_path / "one.npz", r"holds 1 arrays, \['images'\]; the two named images and labels"),
        (tmp_path / "few.npz", r"labels of shape \(19,\).*shape \(20,\)"),
        (tmp_path / "real.npz", "labels of shape.*type float64"),
    ):
        with pytest.raises(ValueError, match=message):
            load(path, (6, 5, 3) if path.name == "pictures" else (4, 4, 1), labels=True)
    with pytest.raises(FileNotFoundError, match="train-labels"):
        load(tmp_path / "idx", (4, 4, 1), labels=True)
