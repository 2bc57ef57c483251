"""Finished parts of a long computation, kept in a folder, so that the same call after an interruption continues."""

import contextlib
import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._fingerprint import fingerprint
from .._io import full_disk_explained, make_writable, read_npz, write_safely

_NUMBERS = "numbers.txt"


class KeptParts:
    """The parts of one computation. A part is a tuple of arrays, in a file of its own that is written atomically, or a
    single number, in a common file. Without a folder every part is computed."""

    def __init__(self, folder: Path | None = None, begin: Callable[[], None] = lambda: None):
        self._folder, self._prefix = folder, ""
        self._begin, self._begun = begin, False
        self._numbers: dict[str, float] = {}
        if folder is not None and (folder / _NUMBERS).is_file():
            for line in (folder / _NUMBERS).read_text().splitlines():
                # The last line of a process that was killed may be incomplete.
                with contextlib.suppress(ValueError):
                    name, value = json.loads(line)
                    self._numbers[name] = float(value)

    def arrays(self, name: str, compute: Callable[[], Sequence[Any]]) -> tuple[np.ndarray, ...]:
        """The arrays of a part, which are computed unless they are kept."""
        path = None if self._folder is None else self._folder / f"{self._prefix}{name}.npz"
        if path is not None and path.is_file():
            # A damaged file is computed again.
            with contextlib.suppress(ValueError):
                return _unpacked(read_npz(path, "a part of a calibration", ""))
        self._computing()
        found = tuple(map(np.asarray, compute()))
        if path is not None:
            content: dict[str, Any] = _packed(found)
            write_safely(path, lambda file: np.savez(file, **content))
        return found

    def number(self, name: str, compute: Callable[[], float]) -> float:
        """A number, which is computed unless it is kept."""
        if name not in self._numbers:
            self._computing()
            self._numbers[name] = compute()
            if self._folder is not None:
                path = self._folder / _NUMBERS
                with full_disk_explained(path), open(path, "a") as file:
                    # Begun with a line break, because the line before may be incomplete.
                    file.write("\n" + json.dumps([name, self._numbers[name]]))
        return self._numbers[name]

    def within(self, name: str) -> "KeptParts":
        """The parts of a part, whose names begin with its own."""
        parts = copy.copy(self)
        parts._prefix = f"{self._prefix}{name}-"
        return parts

    def _computing(self) -> None:
        """Lets a progress display measure its rate from the first part that is computed."""
        if not self._begun:
            self._begun = True
            self._begin()


def kept_parts(kind: str, folder: str | Path | None, problem: Any, begin: Callable[[], None]) -> KeptParts:
    """The parts of a computation in a folder for this kind and this problem, a PyTree of everything that determines the
    numbers. Raises `ValueError` for a problem that cannot be identified, `OSError` where the folder cannot be
    written."""
    if folder is None:
        return KeptParts(None, begin)
    try:
        own = Path(folder) / f"{kind}-{fingerprint(problem)}"
    except TypeError as error:
        raise ValueError(
            f"keep_in={str(folder)!r} needs levels and arguments that can be recognised after an interruption. {error} "
            "Leave keep_in out."
        ) from error
    make_writable(own, "Choose another folder, keep_in=FOLDER.")
    return KeptParts(own, begin)


def _packed(arrays: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """The arrays by number and type. NumPy stores types of other packages, such as bfloat16, without their names."""
    return {f"{i}:{array.dtype.name}": array for i, array in enumerate(arrays)}


def _unpacked(content: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    found = {}
    for name, array in content.items():
        number, dtype = name.split(":")
        found[int(number)] = array.view(jnp.dtype(dtype)) if array.dtype.kind == "V" else array
    return tuple(found[i] for i in range(len(found)))
