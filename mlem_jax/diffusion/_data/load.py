"""Training images from whatever holds them: IDX files, a folder of pictures, or an array in a file."""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from .folder import read_pictures
from .idx import load_images, load_labels

Images = UInt8[np.ndarray, "_ h w c"] | Float[np.ndarray, "_ h w c"]

_MOST_HELD_OUT = 10_000


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """What [`mlem_jax.diffusion.load_data`][] found: bytes, or numbers in `[-1, 1]`.

    - `images`: to be trained on, `(n, h, w, c)`.
    - `held_out`: not to be trained on, `(m, h, w, c)`.
    - `skipped`: one line for each picture that could not be read.
    - `labels`, `held_out_labels`: integers from 0, `(n,)` and `(m,)`, where they were asked for.
    """

    images: Images
    held_out: Images
    skipped: tuple[str, ...] = ()
    labels: Int[np.ndarray, " n"] | None = None
    held_out_labels: Int[np.ndarray, " m"] | None = None


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
    - any other folder: the pictures in it and in its subfolders, of any size, see `cache` below;
    - an `.npy` file, or an `.npz` file with one array: `(n, h, w, c)`, or `(n, h, w)` for one channel, of `shape`,
        bytes from 0 to 255 or floating-point numbers from -1 to 1. With labels, an `.npz` file with two arrays,
        `images` and `labels`.

    Where nothing is held out by the data itself, a tenth of the images is, 10,000 at most: the same ones every time.

    **Arguments:** `cache`, a folder in which decoded pictures are kept, and from which they are mapped instead of
    being held in memory; `progress`, whether to show a bar while pictures are decoded.

    Raises `FileNotFoundError` for a path that is not there, and `ValueError` for one that holds something else,
    nothing at all, images of another shape or numbers of another range, or for pictures or an `.npy` file where labels
    are asked for; `OSError` for a full disk.
    """
    path = Path(path)
    if not path.exists():
        # With the hint about Debian's data set.
        load_images(path)
    if path.is_file():
        found, numbers = _array(path, shape, labels)
        return _split(path, found, numbers)
    if any((path / f"train-images-idx3-ubyte{ending}").exists() for ending in ("", ".gz")):
        data = Data(load_images(path), load_images(path, train=False))
        _check_shape(path, data.images.shape, shape)
        _check_shape(path, data.held_out.shape, shape)
        if not labels:
            return data
        return dataclasses.replace(
            data, labels=load_labels(path), held_out_labels=load_labels(path, train=False)
        )
    if labels:
        raise ValueError(
            f"{path} is a folder of pictures, which have no labels, and the configuration has classes. Write "
            "numpy.savez(FILE, images=..., labels=...) and name that file, or leave classes out of the configuration."
        )
    found = read_pictures(path, shape, cache=None if cache is None else Path(cache), progress=progress)
    count = _count_held_out(path, len(found.images))
    return Data(found.images[count:], found.images[:count], found.skipped)


def as_floats(images: Images) -> Float[np.ndarray, "_ h w c"]:
    """Bytes scaled to `[-1, 1]`; numbers as they are, in single precision."""
    if images.dtype == np.uint8:
        return images / np.float32(127.5) - np.float32(1)
    return np.asarray(images, np.float32)


def _array(path: Path, shape: tuple[int, int, int], labels: bool) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        # Mapped, so that only what is trained on is copied to memory.
        found = np.load(path, mmap_mode="r")
        numbers = None
        if isinstance(found, np.lib.npyio.NpzFile):
            with found:
                names = set(found.files)
                if names != {"images", "labels"} and (labels or len(names) != 1):
                    expected = "the two named images and labels" if labels else "one"
                    raise ValueError(f"it holds {len(names)} arrays, {found.files}; {expected} is expected")
                numbers = found["labels"] if labels else None
                found = found["images" if "images" in names else found.files[0]]
        elif labels:
            raise ValueError("it holds no labels, and the configuration has classes")
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        write = "numpy.savez(FILE, images=..., labels=...)" if labels else "numpy.save(FILE, images)"
        raise ValueError(
            f"{path} cannot be used: {str(error).rstrip('.')}. Write {write} with an array (n, height, width, "
            "channels) of bytes" + (" and n integers." if labels else ", or name a folder of pictures.")
        ) from error
    if found.ndim == 3:
        found = found[..., None]
    _check_shape(path, found.shape, shape)
    _count_held_out(path, len(found))
    if numbers is not None and (
        numbers.shape != found.shape[:1] or not np.issubdtype(numbers.dtype, np.integer)
    ):
        raise ValueError(
            f"{path} holds labels of shape {numbers.shape} and type {numbers.dtype}; integers of shape "
            f"({len(found)},), one per image, are expected."
        )
    if found.dtype == np.uint8:
        return found, numbers
    if not np.issubdtype(found.dtype, np.floating):
        raise ValueError(
            f"{path} holds numbers of type {found.dtype}; bytes (uint8) or floating-point numbers are expected. "
            "Write images.astype(numpy.uint8) if they lie between 0 and 255."
        )
    low, high = float(np.min(found)), float(np.max(found))
    # Numbers that are never negative lie in [0, 1], and would all be too bright.
    if not (-1 <= low < 0 and high <= 1):
        raise ValueError(
            f"{path} holds numbers from {low:g} to {high:g}; -1 (black) to 1 (white) is expected. For numbers "
            "between 0 and 1 write 2 * images - 1; for 0 to 255 write images.astype(numpy.uint8)."
        )
    return found, numbers


def _check_shape(path: Path, found: tuple[int, ...], shape: tuple[int, int, int]) -> None:
    if len(found) != 4 or tuple(found[1:]) != tuple(shape):
        raise ValueError(
            f"{path} holds an array of shape {found}, and the levels are for images of shape {tuple(shape)} (height, "
            f"width, channels): (n, {', '.join(map(str, shape))}) is expected. Write the shape of the images into "
            "the configuration, or give it with --shape."
        )


def _count_held_out(path: Path, count: int) -> int:
    if count < 2:
        raise ValueError(f"{path} holds {count} images; at least 2 are needed, one to be held out.")
    return min(max(count // 10, 1), _MOST_HELD_OUT)


def _split(path: Path, images: np.ndarray, labels: np.ndarray | None) -> Data:
    count = _count_held_out(path, len(images))
    order = np.random.default_rng(0).permutation(len(images))
    # In the file's order, since that is how a disk reads fastest.
    kept, held_out = np.sort(order[count:]), np.sort(order[:count])
    data = Data(images[kept], images[held_out])
    if labels is None:
        return data
    return dataclasses.replace(data, labels=labels[kept], held_out_labels=labels[held_out])
