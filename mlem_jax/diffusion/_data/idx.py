"""Images from files: the IDX format of MNIST and Fashion-MNIST."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

# First four bytes of IDX files of bytes with three axes and with one (Y. LeCun's description of MNIST's files).
_IMAGES, _LABELS = 0x803, 0x801
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
HINT = (
    "Fashion-MNIST is in the Debian package dataset-fashion-mnist "
    f"('apt-get install dataset-fashion-mnist' puts it into {FASHION_MNIST}); elsewhere, name the "
    "folder that holds train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz as the data."
)


def load_images(folder: str | Path = FASHION_MNIST, *, train: bool = True) -> Float[np.ndarray, "n h w 1"]:
    """The grey images of an MNIST-like data set, scaled to `[-1, 1]`, in the file's order.

    **Arguments:**

    - `folder`: holds `train-images-idx3-ubyte` and `t10k-images-idx3-ubyte`, plain or `.gz`.
    - `train`: the training images, or else the held-out ones.

    Raises `FileNotFoundError` saying how to get the data, and `ValueError` for a file that is not
    IDX images or is cut short.
    """
    path, content = _read(folder, f"{'train' if train else 't10k'}-images-idx3-ubyte")
    magic, count, height, width = (int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(4))
    if magic != _IMAGES or len(content) != 16 + count * height * width:
        raise ValueError(
            f"{path} is not a complete IDX file of images (magic number {_IMAGES}, then count, height and "
            f"width): it begins with {magic} and holds {len(content)} bytes. {HINT}"
        )
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(count, height, width, 1)
    return pixels / np.float32(127.5) - np.float32(1)


def load_labels(folder: str | Path = FASHION_MNIST, *, train: bool = True) -> Int[np.ndarray, " n"]:
    """The labels of [`mlem_jax.diffusion.load_images`][]'s images, in the same order, from 0.

    **Arguments:**

    - `folder`: holds `train-labels-idx1-ubyte` and `t10k-labels-idx1-ubyte`, plain or `.gz`.
    - `train`: the labels of the training images, or else of the held-out ones.

    Raises like `load_images`.
    """
    path, content = _read(folder, f"{'train' if train else 't10k'}-labels-idx1-ubyte")
    magic, count = (int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(2))
    if magic != _LABELS or len(content) != 8 + count:
        raise ValueError(
            f"{path} is not a complete IDX file of labels (magic number {_LABELS}, then their count): it begins with "
            f"{magic} and holds {len(content)} bytes. {HINT}"
        )
    return np.frombuffer(content, np.uint8, offset=8).astype(np.int32)


def _read(folder: str | Path, name: str) -> tuple[Path, bytes]:
    """The path and content of a file that may be compressed."""
    for path, opener in ((Path(folder) / f"{name}.gz", gzip.open), (Path(folder) / name, open)):
        if path.is_file():
            try:
                with opener(path, "rb") as file:
                    return path, file.read()
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ValueError(f"{path} is not a complete gzip file ({error}). {HINT}") from error
    raise FileNotFoundError(f"No {name}.gz or {name} in {folder}. {HINT}")
