"""A folder of picture files as one array of bytes, decoded once and then mapped from a file."""

import dataclasses
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..._io import write_safely, write_text_safely
from ..._progress import show_progress
from .picture import MODES, read_picture
from .split import digest

# Decoded together, then written: bounds the memory.
_BLOCK = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """The images of a folder, in the order of digests of their files: a pseudo-random order that does not depend on
    names.

    - `images`: `(n, h, w, c)`; mapped from the cache where there is one.
    - `skipped`: one line for each file that could not be read.
    - `places`: the first folder on the way to each image's file, empty for a file that lies in the folder itself.
    """

    images: UInt8[np.ndarray, "n h w c"]
    skipped: tuple[str, ...]
    places: tuple[str, ...]


def read_pictures(
    folder: Path, shape: tuple[int, int, int], *, cache: Path | None = None, progress: bool = True
) -> Pictures:
    """The picture files in a folder and its subfolders, see `read_picture`.

    With `cache`, a folder, they are decoded once and kept there as one `.npy` file, from which the same call maps
    them afterwards; otherwise they are all in memory. Links to folders are followed. Hidden files and folders, and
    files whose names do not end like a picture's, are left alone.

    Raises `ValueError` for another number of channels, a folder without pictures or without one that can be
    read; `OSError` for a full disk.
    """
    if shape[2] not in MODES:
        raise ValueError(
            f"{folder} holds pictures, and the configuration's shape is {shape}; 1 channel (grey) or 3 (colour) "
            "are expected."
        )
    paths = picture_paths(folder)
    if not paths:
        raise ValueError(
            f"{folder} and its subfolders hold no pictures ({', '.join(sorted(Image.registered_extensions())[:6])}, "
            "...). Name the folder of the images, or an .npy or .npz file, as the data."
        )
    if cache is None:
        seen = _Seen(folder)
        blocks = list(_decode(seen, _by_content(paths), shape, progress))
        images = np.concatenate([np.zeros((0, *shape), np.uint8), *blocks])
        return Pictures(_some(folder, images, seen.skipped), tuple(seen.skipped), tuple(seen.places))
    # The name says what is in it, so that a folder that has changed, or another shape, is decoded anew. The number
    # stands for the order, the scaling and the notes, which are those of this version.
    files = [[str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]
    code = digest(json.dumps([3, files, shape]).encode()).hex()[:12]
    array, notes = cache / f"images-{code}.npy", cache / f"images-{code}.json"
    if not (array.is_file() and notes.is_file()):
        cache.mkdir(parents=True, exist_ok=True)
        seen = _Seen(folder)
        blocks = _decode(seen, _by_content(paths), shape, progress)
        write_safely(array, lambda file: _write(file, blocks, shape))
        description = {
            "folder": str(folder.absolute()),
            "shape": shape,
            "skipped": seen.skipped,
            "places": seen.places,
        }
        write_text_safely(notes, json.dumps(description, indent=2) + "\n")
    images = np.load(array, mmap_mode="r")
    kept = json.loads(notes.read_text())
    return Pictures(_some(folder, images, kept["skipped"]), tuple(kept["skipped"]), tuple(kept["places"]))


@dataclasses.dataclass
class _Seen:
    """What is noted of files while they are decoded."""

    folder: Path
    skipped: list[str] = dataclasses.field(default_factory=list)
    places: list[str] = dataclasses.field(default_factory=list)

    def note(self, path: Path, found: np.ndarray | str) -> None:
        if isinstance(found, str):
            self.skipped.append(found)
        else:
            inside = path.relative_to(self.folder).parts
            self.places.append(inside[0] if len(inside) > 1 else "")


def picture_paths(folder: Path) -> list[Path]:
    """The picture files, sorted by name. Nothing hidden, such as macOS's `._a.png`, is a picture."""
    endings = Image.registered_extensions()
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        # A link may lead to a folder around it, or twice to the same.
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        candidates = (Path(place, name) for name in names if not name.startswith("."))
        found += [p for p in candidates if p.suffix.lower() in endings and p.is_file()]
    return sorted(found)


def _by_content(paths: list[Path]) -> list[Path]:
    """In the order of digests of their content. A file that cannot be opened is named when it is decoded."""

    def key(path: Path) -> bytes:
        try:
            return digest(path.read_bytes())
        except OSError:
            return b""

    with ThreadPoolExecutor() as pool:
        keys = dict(zip(paths, pool.map(key, paths), strict=True))
    return sorted(paths, key=lambda path: keys[path])


def _some(folder: Path, images: np.ndarray, skipped: list[str]) -> np.ndarray:
    if not len(images):
        raise ValueError(
            f"None of the {len(skipped)} pictures in {folder} can be read; the first: {skipped[0]}."
        )
    return images


def _decode(
    seen: _Seen, paths: list[Path], shape: tuple[int, int, int], progress: bool
) -> Iterator[np.ndarray]:
    """Blocks of images, in the order of the paths; which they are, and what cannot be read, is noted."""

    def one(path: Path) -> np.ndarray | str:
        try:
            return read_picture(path, shape)
        except MemoryError:
            raise
        except Exception as error:
            # Pillow raises many kinds of exception for damaged files.
            return f"{path.relative_to(seen.folder)} ({type(error).__name__}: {error})"

    shown = progress and len(paths) > _BLOCK
    # Threads suffice: Pillow decodes and resizes without Python's lock.
    with (
        ThreadPoolExecutor() as pool,
        show_progress("reading pictures", total=len(paths), unit="pictures", shown=shown) as display,
    ):
        for start in range(0, len(paths), _BLOCK):
            block = paths[start : start + _BLOCK]
            found = list(pool.map(one, block))
            display.advance(len(found))
            for path, image in zip(block, found, strict=True):
                seen.note(path, image)
            images = [x for x in found if not isinstance(x, str)]
            if images:
                yield np.stack(images)


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
