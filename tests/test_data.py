"""Reading IDX files, and what is said where there are none."""

import gzip

import numpy as np
import pytest
from diffusion_problems import idx_bytes, write_idx

from mlem_jax.diffusion import load_images

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 3, 5))


@pytest.mark.parametrize("compress", [True, False])
def test_round_trip_in_order_and_range(tmp_path, compress):
    write_idx(tmp_path, IMAGES, compress=compress)
    write_idx(tmp_path, IMAGES[:2], train=False, compress=compress)
    found = load_images(tmp_path)
    assert found.shape == (7, 3, 5, 1) and found.dtype == np.float32
    np.testing.assert_allclose(found[..., 0], IMAGES / 127.5 - 1, atol=1e-6)
    assert len(load_images(tmp_path, train=False)) == 2


def test_a_missing_data_set_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(idx_bytes(IMAGES)[:-1]), "not a complete IDX file"),
        (gzip.compress(idx_bytes(IMAGES, magic=2049)), "begins with 2049"),
        (gzip.compress(idx_bytes(IMAGES))[:-9], "not a complete gzip file"),
        (b"something else", "not a complete gzip file"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path)
