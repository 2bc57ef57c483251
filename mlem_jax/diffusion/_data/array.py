"""Images, and perhaps labels, from one `.npy` or `.npz` file, checked."""

import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def read_array(
    path: Path, shape: tuple[int, int, int], *, labels: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """The images `(n, h, w, c)` in a file, and its labels if they are asked for. Raises `ValueError`, with what to
    write, for anything else."""
    _refuse_other_files(path)
    found, numbers = _load(path, labels)
    if found.ndim == 3:
        found = found[..., None]
    check_shape(path, found.shape, shape)
    if numbers is not None and (
        numbers.shape != found.shape[:1] or not np.issubdtype(numbers.dtype, np.integer)
    ):
        raise ValueError(
            f"{path} holds labels of shape {numbers.shape} and type {numbers.dtype}; integers of shape "
            f"({len(found)},), one per image, are expected."
        )
    if len(found):
        _check_numbers(path, found)
    return found, numbers


def check_shape(path: Path, found: tuple[int, ...], shape: tuple[int, int, int]) -> None:
    """Raises `ValueError` unless `found` is the shape of a batch of images of `shape`."""
    if len(found) != 4 or tuple(found[1:]) != tuple(shape):
        raise ValueError(
            f"{path} holds an array of shape {found}, and the levels are for images of shape {tuple(shape)} (height, "
            f"width, channels): (n, {', '.join(map(str, shape))}) is expected. Write the shape of the images into "
            "the configuration."
        )


def _refuse_other_files(path: Path) -> None:
    if path.suffix.lower() in Image.registered_extensions():
        raise ValueError(
            f"{path} is one picture; name the folder that holds the pictures, such as {path.absolute().parent}."
        )
    members = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    if not all(name.endswith(".npy") for name in members) or tarfile.is_tarfile(path):
        raise ValueError(f"{path} is an archive of files; unpack it and name the folder.")


def _load(path: Path, labels: bool) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        # Mapped, so that only what is trained on is copied to memory.
        found = np.load(path, mmap_mode="r")
        if not isinstance(found, np.lib.npyio.NpzFile):
            if labels:
                raise ValueError("it holds no labels, and the configuration has classes")
            return found, None
        with found:
            names = set(found.files)
            if names != {"images", "labels"} and (labels or len(names) != 1):
                expected = "the two named images and labels" if labels else "one"
                raise ValueError(f"it holds {len(names)} arrays, {found.files}; {expected} is expected")
            numbers = found["labels"] if labels else None
            return found["images" if "images" in names else found.files[0]], numbers
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        write = "numpy.savez(FILE, images=..., labels=...)" if labels else "numpy.save(FILE, images)"
        raise ValueError(
            f"{path} cannot be used: {str(error).rstrip('.')}. Write {write} with an array (n, height, width, "
            "channels) of bytes" + (" and n integers." if labels else ", or name a folder of pictures.")
        ) from error


def _check_numbers(path: Path, found: np.ndarray) -> None:
    if found.dtype == np.uint8:
        return
    if not np.issubdtype(found.dtype, np.floating):
        scale = "255 * " if found.dtype == bool else ""
        when = "True is white" if found.dtype == bool else "they lie between 0 and 255"
        raise ValueError(
            f"{path} holds numbers of type {found.dtype}; bytes (uint8) or floating-point numbers are expected. "
            f"Write {scale}images.astype(numpy.uint8) if {when}."
        )
    low, high = float(np.min(found)), float(np.max(found))
    if not np.isfinite(low) or not np.isfinite(high):
        bad = np.flatnonzero(~np.isfinite(found).all(axis=(1, 2, 3)))
        raise ValueError(
            f"{path} holds numbers that are not finite: {len(bad)} of {len(found)} images have NaN or infinite ones, "
            f"the first of them number {bad[0]} (counted from 0). Leave them out: "
            "images[numpy.isfinite(images).all(axis=(1, 2, 3))]."
        )
    # Numbers that are never negative lie in [0, 1], and would all be too bright.
    if not (-1 <= low < 0 and high <= 1):
        raise ValueError(
            f"{path} holds numbers from {low:g} to {high:g}; -1 (black) to 1 (white) is expected. For numbers "
            "between 0 and 1 write 2 * images - 1; for 0 to 255 write images.astype(numpy.uint8)."
        )
