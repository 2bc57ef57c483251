"""Writing files so that none is ever there in part, and so that a full disk says what to do."""

import contextlib
import errno
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

_FULL = (errno.ENOSPC, errno.EDQUOT)


def full_disk(path: Path) -> OSError:
    """The error of a disk without room for `path`."""
    return OSError(
        errno.ENOSPC,
        f"No space is left to write {path}. Nothing that was written before is lost: make room and run the same again",
    )


@contextlib.contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Makes the error of a full disk one that says what to do."""
    try:
        yield
    except Exception as error:
        # tensorstore, below orbax, raises ValueError with the system's message in it.
        said = any(os.strerror(number) in str(error) for number in _FULL)
        if not said and getattr(error, "errno", None) not in _FULL:
            raise
        raise full_disk(path) from error


def write_safely(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file in one step: whatever happens, the place has the old content or the new.

    Raises `OSError` that says so where the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with full_disk_explained(path):
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_safely(path: Path, text: str) -> None:
    """The same for a text."""
    write_safely(path, lambda file: file.write(text.encode()))


def read_npz(path: str | Path, what: str, remedy: str) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file. Raises `FileNotFoundError`, or `ValueError` for a file that is damaged or of
    another kind."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, OSError, KeyError) as error:
        raise ValueError(f"{path} is not {what}, or damaged ({error}). {remedy}") from error
