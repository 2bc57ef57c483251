"""Images and labels from IDX files: what was written is what is read, and a file that is wrong is named."""

import gzip

import numpy as np
import pytest
from diffusion_problems import idx_bytes, write_idx, write_idx_labels

from mlem_jax.diffusion import FASHION_MNIST, load_images, load_labels

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 4))
PIXELS[0, 0, :2] = 0, 255


@pytest.mark.parametrize("compress", [True, False], ids=["gz", "plain"])
def test_what_was_written_is_read_in_order(tmp_path, compress):
    write_idx(tmp_path, PIXELS, compress=compress)
    images = load_images(tmp_path)
    assert images.shape == (5, 3, 4, 1) and images.dtype == np.float32
    # Not rounded away: a 256th of the range is told from the next.
    np.testing.assert_array_equal(np.round((images[..., 0] + 1) * 127.5), PIXELS)


def test_black_is_minus_one_and_white_one(tmp_path):
    write_idx(tmp_path, PIXELS)
    images = load_images(tmp_path)
    assert images[0, 0, 0, 0] == images.min() == -1
    assert images[0, 0, 1, 0] == images.max() == 1


def test_training_and_held_out_images_are_two_files(tmp_path):
    write_idx(tmp_path, PIXELS)
    write_idx(tmp_path, PIXELS[:2], train=False)
    assert len(load_images(tmp_path)) == 5
    assert len(load_images(str(tmp_path), train=False)) == 2


def test_a_folder_without_the_files_says_where_to_get_them(tmp_path):
    write_idx(tmp_path, PIXELS)
    for folder, train, missing in (
        (tmp_path / "nowhere", True, "train-images"),
        (tmp_path, False, "t10k-images"),
    ):
        with pytest.raises(FileNotFoundError, match=f"No {missing}-idx3-ubyte.gz or {missing}") as error:
            load_images(folder, train=train)
        message = str(error.value)
        assert f"in {folder}." in message
        assert "apt-get install dataset-fashion-mnist" in message and str(FASHION_MNIST) in message
        assert "name the folder that holds train-images-idx3-ubyte.gz" in message


WHOLE = idx_bytes(PIXELS)
PACKED = gzip.compress(WHOLE)


@pytest.mark.parametrize(
    "content",
    [PACKED[:-12], PACKED[:5], b"<html>404</html>", PACKED[:40] + b"\xff" * 8 + PACKED[48:]],
    ids=["cut short", "cut in the header", "another file", "changed in the middle"],
)
def test_a_damaged_gzip_file_is_refused(tmp_path, content):
    path = write_idx(tmp_path, PIXELS)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="-ubyte.gz is not a complete gzip file .*dataset-fashion-mnist"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        (idx_bytes(PIXELS[0, 0, :, None, None], magic=2049), "begins with 2049 and holds 20 bytes"),
        (WHOLE[:-1], f"begins with 2051 and holds {len(WHOLE) - 1} bytes"),
        (WHOLE + b"\0", f"begins with 2051 and holds {len(WHOLE) + 1} bytes"),
        (WHOLE[:7], "begins with 2051 and holds 7 bytes"),
        (b"", "begins with 0 and holds 0 bytes"),
    ],
    ids=["labels", "a byte short", "a byte too long", "within the header", "empty"],
)
@pytest.mark.parametrize("compress", [True, False], ids=["gz", "plain"])
def test_a_file_that_is_not_idx_images_is_refused(tmp_path, content, message, compress):
    path = write_idx(tmp_path, PIXELS, compress=compress)
    path.write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(ValueError, match=f"not a complete IDX file .*magic number 2051.*{message}"):
        load_images(tmp_path)


def test_labels_are_read_in_order_and_a_file_that_is_wrong_is_refused(tmp_path):
    path = write_idx_labels(tmp_path, [3, 0, 255])
    write_idx_labels(tmp_path, [7], train=False)
    np.testing.assert_array_equal(load_labels(tmp_path), [3, 0, 255])
    np.testing.assert_array_equal(load_labels(tmp_path, train=False), [7])
    whole = gzip.decompress(path.read_bytes())
    for content, message in (
        (whole[:-1], "begins with 2049 and holds 10 bytes"),
        (WHOLE, f"begins with 2051 and holds {len(WHOLE)} bytes"),
        (b"", "begins with 0 and holds 0 bytes"),
    ):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(ValueError, match=f"not a complete IDX file of labels .*2049.*{message}"):
            load_labels(tmp_path)
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match="No train-labels-idx1-ubyte.gz or train-labels.*dataset-fash"
    ):
        load_labels(tmp_path)


def test_debians_data_set_is_read():
    if not FASHION_MNIST.is_dir():
        pytest.skip(f"{FASHION_MNIST} is not installed")
    images = load_images(train=False)
    np.testing.assert_array_equal(np.bincount(load_labels(train=False)), [1_000] * 10)
    assert images.shape == (10_000, 28, 28, 1)
    # The published mean of Fashion-MNIST's pixels is 0.286 in units of white.
    assert abs((images.mean() + 1) / 2 - 0.286) < 0.005
