"""A folder of picture files as one array of bytes, decoded once and then mapped from a file."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps
from rich.progress import track

from ..._io import write_safely, write_text_safely

# Decoded together, then written: bounds the memory.
_BLOCK = 1024
_MODES = {1: "L", 3: "RGB"}


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """The images of a folder, in an order that looks random and depends on the file names only.

    - `images`: `(n, h, w, c)`; mapped from the cache where there is one.
    - `skipped`: one line for each file that could not be read.
    """

    images: UInt8[np.ndarray, "n h w c"]
    skipped: tuple[str, ...]


def read_pictures(
    folder: Path, shape: tuple[int, int, int], *, cache: Path | None = None, progress: bool = True
) -> Pictures:
    """The picture files in a folder and its subfolders, resized to cover `shape` and cropped to its centre, grey for
    one channel and colour for three. What is transparent becomes white.

    With `cache`, a folder, they are decoded once and kept there as one `.npy` file, from which the same call maps
    them afterwards; otherwise they are all in memory. Files whose names do not end like a picture's are left alone.

    Raises `ValueError` for another number of channels, a folder without pictures or without one that can be
    read; `OSError` for a full disk.
    """
    height, width, channels = shape
    if channels not in _MODES:
        raise ValueError(
            f"{folder} holds pictures, and the configuration's shape is {shape}; 1 channel (grey) or 3 (colour) "
            "are expected."
        )
    paths = _paths(folder)
    if not paths:
        raise ValueError(
            f"{folder} and its subfolders hold no pictures ({', '.join(sorted(Image.registered_extensions())[:6])}, "
            "...). Name the folder of the images, or an .npy or .npz file, with --data."
        )
    # Not sorted by name, which is often by class; what is held out is then like the rest.
    paths = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]
    if cache is None:
        skipped: list[str] = []
        blocks = list(_decode(folder, paths, shape, skipped, progress))
        images = np.concatenate([np.zeros((0, *shape), np.uint8), *blocks])
        return Pictures(_some(folder, images, skipped), tuple(skipped))
    # The name says what is in it, so that a folder that has changed, or another shape, is decoded anew.
    names = [[str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]
    code = hashlib.sha256(json.dumps([names, shape]).encode()).hexdigest()[:12]
    array, notes = cache / f"images-{code}.npy", cache / f"images-{code}.json"
    if not (array.is_file() and notes.is_file()):
        cache.mkdir(parents=True, exist_ok=True)
        skipped = []
        write_safely(
            array, lambda file: _write(file, _decode(folder, paths, shape, skipped, progress), shape)
        )
        text = (
            json.dumps({"folder": str(folder.absolute()), "shape": shape, "skipped": skipped}, indent=2)
            + "\n"
        )
        write_text_safely(notes, text)
    images = np.load(array, mmap_mode="r")
    skipped = json.loads(notes.read_text())["skipped"]
    return Pictures(_some(folder, images, skipped), tuple(skipped))


def _paths(folder: Path) -> list[Path]:
    """The picture files, sorted by name; hidden ones, such as macOS's `._a.png`, are not pictures."""
    endings = Image.registered_extensions()
    found = (p for p in folder.rglob("*") if p.suffix.lower() in endings and not p.name.startswith("."))
    return sorted(p for p in found if p.is_file())


def _some(folder: Path, images: np.ndarray, skipped: list[str]) -> np.ndarray:
    if not len(images):
        raise ValueError(
            f"None of the {len(skipped)} pictures in {folder} can be read; the first: {skipped[0]}."
        )
    return images


def _decode(
    folder: Path, paths: list[Path], shape: tuple[int, int, int], skipped: list[str], progress: bool
) -> Iterator[np.ndarray]:
    """Blocks of images, in the order of the paths; what cannot be read is noted in `skipped`."""

    def one(path: Path) -> np.ndarray | str:
        try:
            return _picture(path, shape)
        except MemoryError:
            raise
        except Exception as error:
            # Pillow raises many kinds of exception for damaged files.
            return f"{path.relative_to(folder)} ({type(error).__name__}: {error})"

    starts = track(
        range(0, len(paths), _BLOCK), "reading pictures", disable=not progress or len(paths) <= _BLOCK
    )
    # Threads suffice: Pillow decodes and resizes without Python's lock.
    with ThreadPoolExecutor() as pool:
        for start in starts:
            found = list(pool.map(one, paths[start : start + _BLOCK]))
            skipped.extend(x for x in found if isinstance(x, str))
            images = [x for x in found if not isinstance(x, str)]
            if images:
                yield np.stack(images)


def _picture(path: Path, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "h w c"]:
    height, width, channels = shape
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        image = ImageOps.fit(image.convert(_MODES[channels]), (width, height), Image.Resampling.LANCZOS)
        return np.asarray(image, np.uint8).reshape(shape)


def _write(file: BinaryIO, blocks: Iterator[np.ndarray], shape: tuple[int, int, int]) -> None:
    """Writes an `.npy` file block by block, not through a map, where a full disk would kill the process."""

    def header(count: int) -> None:
        description = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(file, description)

    # How many there will be is not known yet; NumPy leaves room in the header for any number.
    header(0)
    count = 0
    for block in blocks:
        file.write(block.tobytes())
        count += len(block)
    file.seek(0)
    header(count)
