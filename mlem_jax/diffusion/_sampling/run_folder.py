"""The folder of a sampling run: its description, finished batches, and the result.

    run.json            everything that determines the samples; a call with other settings is refused
    batches/A-B.npz     the samples A to B - 1, counted from 0, until all are drawn
    samples.npz         all samples, written at the end

All files are written atomically. A run can be continued with more samples, which are then drawn beside the old ones.
"""

import contextlib
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..._io import locked, make_writable, write_safely, write_text_safely

_RUN, _BATCHES, _RESULT = "run.json", "batches", "samples.npz"
_BATCH_NAME = re.compile(r"(\d+)-(\d+)\.npz")
Arrays = dict[str, np.ndarray]


class RunFolder:
    """The folder of one run, created or continued.

    **Arguments:** `path`, and `run`, everything that determines the samples, as a JSON object.

    Raises `FileExistsError` for a folder with files that are not a run's, `ValueError` for that of another run,
    `OSError` for a place that cannot be written.
    """

    def __init__(self, path: str | Path, run: dict[str, Any]):
        self.path = Path(path)
        # How many samples the result has, once `found` has seen it.
        self.stored = 0
        description = self.path / _RUN
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file; choose another place for the folder of samples.")
        if description.is_file():
            self._check(description, run)
        else:
            others = sorted(p.name for p in self.path.glob("[!.]*") if p.name != _BATCHES)
            if others:
                raise FileExistsError(
                    f"{self.path} holds files that are not of a sampling run ({', '.join(others[:3])}); nothing was "
                    "written. Choose another folder."
                )
            make_writable(self.path, "Choose another folder.")
            write_text_safely(description, json.dumps(run, indent=2) + "\n")

    def _check(self, description: Path, run: dict[str, Any]) -> None:
        try:
            there = json.loads(description.read_text())
        except ValueError as error:
            raise ValueError(
                f"{description} is not a run's description ({error}); choose another folder."
            ) from error
        names = {*there, *run} if isinstance(there, dict) else {"everything"}
        differ = sorted(k for k in names if not isinstance(there, dict) or there.get(k) != run.get(k))
        if differ:
            raise self._another_run(", ".join(differ))

    def _another_run(self, differ: str) -> ValueError:
        return ValueError(
            f"{self.path} has the samples of another run, which differs in {differ}; nothing was "
            "written. Continue it with the settings it was begun with, or choose another folder."
        )

    def lock(self, *, shared: bool) -> contextlib.AbstractContextManager[None]:
        """A lock against other processes; with `shared`, only against those that do not share the work. Raises
        `BlockingIOError`."""
        message = (
            f"Another process is drawing samples into {self.path}; nothing was written. Wait until it has ended, or "
            "choose another folder."
        )
        return locked(self.path, shared=shared, message=message)

    def done(self) -> list[tuple[int, int]]:
        """First and one past the last index of each batch in the folder."""
        matches = [_BATCH_NAME.fullmatch(p.name) for p in (self.path / _BATCHES).glob("*.npz")]
        return sorted((int(m[1]), int(m[2])) for m in matches if m)

    def found(self, labels: Arrays) -> Iterator[tuple[int, Arrays]]:
        """The samples in the folder, file by file: first index, arrays. Raises `ValueError` for samples with other
        labels than these; there may be more labels or fewer."""
        self.stored = 0
        pieces = [(start, self._batch(start, stop)) for start, stop in self.done()]
        if (self.path / _RESULT).is_file():
            # Last, because the batches beside it are those of a larger number of samples.
            pieces.append((0, self.path / _RESULT))
        for start, path in pieces:
            arrays = _read(path)
            for name, now in labels.items():
                now = now[start : start + len(arrays["images"])]
                if name not in arrays or not np.array_equal(arrays[name][: len(now)], now):
                    raise self._another_run("labels")
            if path.name == _RESULT:
                self.stored = len(arrays["images"])
            yield start, arrays

    def add(self, start: int, stop: int, arrays: Arrays) -> None:
        """Keeps a batch."""
        (self.path / _BATCHES).mkdir(exist_ok=True)
        write_safely(self._batch(start, stop), lambda file: np.savez(file, allow_pickle=False, **arrays))

    def finish(self, arrays: Arrays) -> None:
        """Puts the result in the place of the batches."""
        write_safely(self.path / _RESULT, lambda file: np.savez(file, allow_pickle=False, **arrays))
        shutil.rmtree(self.path / _BATCHES, ignore_errors=True)

    def _batch(self, start: int, stop: int) -> Path:
        return self.path / _BATCHES / f"{start:08d}-{stop:08d}.npz"


def _read(path: Path) -> Arrays:
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        arrays["images"]
        return arrays
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged ({error}). Move it away and run the same again; only its samples are drawn anew."
        ) from error
