"""Files: atomic writes, errors of full disks and read-only places that say what to do, locks."""

import contextlib
import errno
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

try:
    import fcntl
except ImportError:  # Not on Windows.
    fcntl = None

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
    """Writes a file atomically: whatever happens, the path has the old content or the new.

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


def make_writable(folder: Path, advice: str) -> None:
    """Makes a folder, and a file in it for a moment. Raises `OSError` with the advice where that is not possible; to be
    called before long work rather than after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"Cannot write to {folder}: {error.strerror}. {advice}") from error


@contextlib.contextmanager
def locked(folder: Path, *, shared: bool, message: str) -> Iterator[None]:
    """Holds a folder for this process, or with `shared` for processes that all ask for it so.

    The system drops the lock when the process ends, however it ends. Raises `BlockingIOError` with the message where
    another process has the folder. Does nothing on systems or disks without such locks.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, message) from error
        except OSError:  # Some network disks have no locks.
            pass
        yield
    finally:
        os.close(handle)
