"""Files: atomic writes, errors for full disks and read-only folders, locks."""

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
    """The error for a full disk, while `path` is written."""
    return OSError(
        errno.ENOSPC,
        f"No space is left to write {path}. Nothing that was written before is lost: make room and run the same "
        "command again",
    )


@contextlib.contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Turns the error of a full disk into one that says what to do."""
    try:
        yield
    except Exception as error:
        # tensorstore, below orbax, raises ValueError with the system's message in it.
        said = any(os.strerror(number) in str(error) for number in _FULL)
        if not said and getattr(error, "errno", None) not in _FULL:
            raise
        raise full_disk(path) from error


def write_safely(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file atomically: the path always has either the old or the new content.

    Raises `OSError` if the disk is full.
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
    """Writes a text atomically, as `write_safely` does."""
    write_safely(path, lambda file: file.write(text.encode()))


def read_npz(path: str | Path, what: str, remedy: str) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file. Raises `FileNotFoundError`, or `ValueError` for a damaged file or one of another
    kind; the message says what was expected and ends with the remedy."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, OSError, KeyError) as error:
        raise ValueError(f"{path} is not {what}, or damaged ({error}). {remedy}") from error


def make_writable(folder: Path, advice: str) -> None:
    """Creates a folder if necessary and checks that files can be written to it. Raises `OSError` with the advice if
    not. Call it before long computations."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"Cannot write to {folder}: {error.strerror}. {advice}") from error


@contextlib.contextmanager
def locked(folder: Path, *, shared: bool, message: str) -> Iterator[None]:
    """Locks a folder: for this process only, or with `shared` for all processes that lock it with `shared`.

    The system releases the lock when the process ends for any reason. Raises `BlockingIOError` with the message if
    another process holds the lock. Does nothing on systems and file systems without locks.
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
        except OSError:  # Some network file systems have no locks.
            pass
        yield
    finally:
        os.close(handle)
