"""Training images from whatever holds them: IDX files, a folder of pictures, or an array in a file."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from .array import check_shape, read_array
from .folder import read_pictures
from .idx import FASHION_MNIST, HINT, load_images, load_labels
from .split import count_held_out, split_by_content

Images = UInt8[np.ndarray, "_ h w c"] | Float[np.ndarray, "_ h w c"]


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """What [`mlem_jax.diffusion.load_data`][] found: bytes, or numbers in `[-1, 1]`.

    - `images`: to be trained on, `(n, h, w, c)`.
    - `held_out`: not to be trained on, `(m, h, w, c)`.
    - `skipped`: one line for each picture that could not be read.
    - `labels`, `held_out_labels`: integers from 0, `(n,)` and `(m,)`, where they were asked for.
    - `classes`: of a folder of pictures, the names of the classes' folders in the order of the labels.
    """

    images: Images
    held_out: Images
    skipped: tuple[str, ...] = ()
    labels: Int[np.ndarray, " n"] | None = None
    held_out_labels: Int[np.ndarray, " m"] | None = None
    classes: tuple[str, ...] | None = None


def load_data(
    path: str | Path,
    shape: tuple[int, int, int],
    *,
    labels: bool = False,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Data:
    """Training and held-out images of `shape`, `(height, width, channels)`, and with `labels=True` their labels.

    What `path` is decides how it is read:

    - a folder with MNIST's IDX files, see [`mlem_jax.diffusion.load_images`][], which have their own held-out half;
    - any other folder: the pictures in it and in its subfolders, linked ones too, of any size, resized and cropped;
        see `cache` below. Hidden files and folders are left alone. With labels each class has a subfolder; labels are
        numbered in the order of their names;
    - an `.npy` file, or an `.npz` file with one array: `(n, h, w, c)`, or `(n, h, w)` for one channel, of `shape`,
        bytes from 0 to 255 or floating-point numbers from -1 to 1. With labels, an `.npz` file with two arrays,
        `images` and `labels`.

    Where nothing is held out by the data itself, a tenth of the images is, 10,000 at most, chosen by digests of their
    content: when images are added, moved or removed, the others stay in their half, except one at the border.

    **Arguments:** `cache`, a folder in which decoded pictures are kept, and from which they are mapped instead of
    being held in memory; `progress`, whether to show it while pictures are decoded.

    Raises `FileNotFoundError` for a path that is not there, and `ValueError` for one that holds something else,
    nothing at all, images of another shape or numbers of another range, and where labels are asked for, for an `.npy`
    file or pictures that lie in no class's folder; `OSError` for a full disk.
    """
    path = Path(path)
    if not path.exists():
        expected = "A folder of pictures, an .npy or .npz file, or a folder of MNIST's IDX files is expected."
        raise FileNotFoundError(f"{path} does not exist. {HINT if path == FASHION_MNIST else expected}")
    if path.is_file():
        found, numbers = read_array(path, shape, labels=labels)
        _check_count(path, len(found))
        kept, held_out = split_by_content(found)
        data = Data(found[kept], found[held_out])
        if numbers is None:
            return data
        return dataclasses.replace(data, labels=numbers[kept], held_out_labels=numbers[held_out])
    if any((path / f"train-images-idx3-ubyte{ending}").exists() for ending in ("", ".gz")):
        data = Data(load_images(path), load_images(path, train=False))
        check_shape(path, data.images.shape, shape)
        check_shape(path, data.held_out.shape, shape)
        if not labels:
            return data
        return dataclasses.replace(
            data, labels=load_labels(path), held_out_labels=load_labels(path, train=False)
        )
    found = read_pictures(path, shape, cache=None if cache is None else Path(cache), progress=progress)
    _check_count(path, len(found.images))
    # They are in the order of their digests already.
    count = count_held_out(len(found.images))
    data = Data(found.images[count:], found.images[:count], found.skipped)
    if not labels:
        return data
    numbers, names = _classes(path, found.places)
    return dataclasses.replace(data, labels=numbers[count:], held_out_labels=numbers[:count], classes=names)


def _classes(path: Path, places: tuple[str, ...]) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    """The class of each picture, which is the folder that it lies in, and the classes' names."""
    names, numbers = np.unique(np.asarray(places), return_inverse=True)
    if "" in places:
        raise ValueError(
            f"{path} is a folder of pictures, {places.count('')} of which lie in no subfolder, and the configuration "
            "has classes. Put the pictures of each class into a subfolder of its own, or leave classes out of the "
            "configuration."
        )
    return numbers.astype(np.int32), tuple(map(str, names))


def as_floats(images: Images) -> Float[np.ndarray, "_ h w c"]:
    """Bytes scaled to `[-1, 1]`; numbers as they are, in single precision."""
    if images.dtype == np.uint8:
        return images / np.float32(127.5) - np.float32(1)
    return np.asarray(images, np.float32)


def _check_count(path: Path, count: int) -> None:
    if count < 2:
        raise ValueError(f"{path} holds {count} images; at least 2 are needed, one to be held out.")
