"""The folder of a sampling run: what it is a run of, finished batches, and the result.

    run.json            what decides the samples; another call is refused
    batches/A-B.npz     the samples A to B - 1, until all are there
    samples.npz         all of them, at the end

Every file is written beside its place and renamed, so none is ever there in part.
"""

import hashlib
import json
import math
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, PyTree
from matplotlib.image import imsave

from ..._io import write_safely, write_text_safely

_RUN, _BATCHES, _RESULT = "run.json", "batches", "samples.npz"
_NAME = re.compile(r"(\d+)-(\d+)\.npz")


def digest(tree: PyTree) -> str:
    """A short text that differs between PyTrees of other structure, settings or numbers."""
    # Functions and objects print with their address, which differs from run to run.
    text = re.sub(r" at 0x[0-9a-f]+", "", eqx.tree_pformat(tree))
    code = hashlib.sha256(text.encode())
    for leaf in jax.tree.leaves(tree):
        if eqx.is_array(leaf):
            code.update(np.asarray(leaf).tobytes())
    return code.hexdigest()[:16]


class RunFolder:
    """The folder of one run; made, or found to be of the same run.

    **Arguments:** `path`, and `run`, all that decides the samples, as a JSON object.

    Raises `FileExistsError` for a folder with files that are not a run's, `ValueError` for that of another run.
    """

    def __init__(self, path: str | Path, run: dict[str, Any]):
        self.path = Path(path)
        begun = self.path / _RUN
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file; choose another place for the folder of samples.")
        if begun.is_file():
            self._check(begun, run)
        else:
            others = sorted(p.name for p in self.path.glob("[!.]*") if p.name != _BATCHES)
            if others:
                raise FileExistsError(
                    f"{self.path} holds files that are not of a sampling run ({', '.join(others[:3])}); nothing was "
                    "written. Choose another folder."
                )
            self.path.mkdir(parents=True, exist_ok=True)
            write_text_safely(begun, json.dumps(run, indent=2) + "\n")
        if not (self.path / _RESULT).is_file():
            (self.path / _BATCHES).mkdir(exist_ok=True)

    def _check(self, begun: Path, run: dict[str, Any]) -> None:
        try:
            there = json.loads(begun.read_text())
        except ValueError as error:
            raise ValueError(
                f"{begun} is not a run's description ({error}); choose another folder."
            ) from error
        names = {*there, *run} if isinstance(there, dict) else {"everything"}
        differ = sorted(k for k in names if not isinstance(there, dict) or there.get(k) != run.get(k))
        if differ:
            raise ValueError(
                f"{self.path} has the samples of another run, which differs in {', '.join(differ)}; nothing was "
                "written. Continue it with what it was begun with, or choose another folder."
            )

    def result(self) -> dict[str, np.ndarray] | None:
        """All samples, or `None` if the run is not finished."""
        path = self.path / _RESULT
        return _read(path) if path.is_file() else None

    def done(self) -> list[tuple[int, int]]:
        """First and one past the last index of each batch that is there."""
        matches = [_NAME.fullmatch(p.name) for p in (self.path / _BATCHES).glob("*.npz")]
        return sorted((int(m[1]), int(m[2])) for m in matches if m)

    def batches(self) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
        """Each batch that is there: first index, one past the last, arrays."""
        for start, stop in self.done():
            yield start, stop, _read(self._batch(start, stop))

    def add(self, start: int, stop: int, arrays: dict[str, np.ndarray]) -> None:
        """Keeps a batch."""
        write_safely(self._batch(start, stop), lambda file: np.savez(file, allow_pickle=False, **arrays))

    def finish(self, arrays: dict[str, np.ndarray]) -> None:
        """Puts the result in the place of the batches."""
        write_safely(self.path / _RESULT, lambda file: np.savez(file, allow_pickle=False, **arrays))
        shutil.rmtree(self.path / _BATCHES, ignore_errors=True)

    def _batch(self, start: int, stop: int) -> Path:
        return self.path / _BATCHES / f"{start:08d}-{stop:08d}.npz"


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged ({error}). Move it away and run the same again; only its samples are drawn anew."
        ) from error


def save_grid(
    path: str | Path, images: Float[np.ndarray, "n h w ..."], *, columns: int | None = None
) -> None:
    """Writes images side by side as one PNG, pixel for pixel, in one step.

    **Arguments:** `images`, `(n, h, w)`, `(n, h, w, 1)` or `(n, h, w, 3)` with values in `[-1, 1]` (others are
    clipped); `columns`, by default as many as rows.

    Raises `ValueError` for other shapes, or no image.
    """
    if not len(images) or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise ValueError(
            f"save_grid was given images of shape {images.shape}; (n, h, w), (n, h, w, 1) or (n, h, w, 3) with "
            "at least one image is expected."
        )
    count, height, width = images.shape[:3]
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = -(-count // columns)
    pixels = np.round(255 * (np.clip(images, -1, 1) + 1) / 2).astype(np.uint8)
    sheet = np.zeros((rows * columns, height, width, 3), np.uint8)
    sheet[:count] = pixels.reshape(count, height, width, -1)
    sheet = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, 3)
    write_safely(Path(path), lambda file: imsave(file, sheet, format="png"))
