"""What can go wrong, as a sentence and an exit code: 2 for a wrong command, 1 for a run that had to stop."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import typer
from rich.console import Console

from .._io import make_writable


@contextlib.contextmanager
def errors_explained(console: Console) -> Iterator[None]:
    """Turns the errors of bad input, full disks and failing networks into sentences, without a traceback."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, ValueError, TypeError, ModuleNotFoundError) as error:
        raise typer.BadParameter(_text(error)) from error
    except (FloatingPointError, OSError, MemoryError) as error:
        console.print(f"[red]Stopped:[/red] {_text(error)}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


class _Terminated(KeyboardInterrupt):
    """SIGTERM outside a stage of training, which handles it itself."""

    signum = signal.SIGTERM


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


@contextlib.contextmanager
def stop_explained(console: Console) -> Iterator[None]:
    """Ends a run that a signal stopped with the sentence and the exit code that belong to the signal."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt as stopped:
        default = "Stopped. What is saved stays: run the same again to continue."
        console.print(str(stopped) or default, highlight=False, soft_wrap=True)
        raise typer.Exit(128 + getattr(stopped, "signum", signal.SIGINT)) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def check_place(folder: Path, option: str) -> None:
    """Ends the command, before its long work, where the folder of an option cannot be written."""
    try:
        make_writable(folder, f"Choose another {option}.")
    except OSError as error:
        raise typer.BadParameter(_text(error)) from error


def _text(error: Exception) -> str:
    # An error of the system also has a number, which says nothing to a reader.
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}."
    return str(error)
