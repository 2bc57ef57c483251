"""The progress display of all long computations: a bar in a terminal or a notebook, lines with times in a log file.

    with show_progress("sampling", total=64, unit="images") as progress:
        progress.advance(8)

Both are written to the standard error stream. The bar needs rich, which is an optional dependency; without it, lines
are written.
"""

import contextlib
import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

# A log then shows within half a minute whether a run is alive.
_SECONDS_BETWEEN_LINES = 25.0


class ProgressDisplay(Protocol):
    """The object to which a long computation reports."""

    def update(self, done: int, text: str = "") -> None:
        """Sets the number of steps done; `text`, such as a loss, is shown beside it."""
        ...

    def advance(self, count: int, text: str = "") -> None:
        """Adds to the number of steps done."""
        ...

    def restart(self) -> None:
        """Measures the rate from here on: an earlier run has done what is done."""
        ...


@contextlib.contextmanager
def show_progress(
    label: str, *, total: int, done: int = 0, unit: str = "", shown: bool = True
) -> Iterator[ProgressDisplay]:
    """A display for `total` steps, of which an earlier run has done the first `done`.

    The displayed rate counts the steps of this run, without the first one, which includes compilation.
    """
    state = _State(label, total, done, unit)
    if not shown:
        yield state
    elif importlib.util.find_spec("rich") is not None and _has_screen():
        with _bar(state) as display:
            yield display
    else:
        with _lines(state):
            yield state


class _State:
    """The number of steps done and their rate."""

    def __init__(self, label: str, total: int, done: int, unit: str):
        self.label, self.total, self.done, self.unit, self.text = label, total, done, unit, ""
        # The number of steps and the time from which the rate is measured.
        self._first: tuple[int, float] | None = None
        self._begun_at = done

    def update(self, done: int, text: str = "") -> None:
        """See `ProgressDisplay`."""
        self.done, self.text = done, text or self.text
        if self._first is None and done > self._begun_at:
            self._first = done, time.monotonic()

    def advance(self, count: int, text: str = "") -> None:
        """See `ProgressDisplay`."""
        self.update(self.done + count, text)

    def restart(self) -> None:
        """See `ProgressDisplay`."""
        self._first, self._begun_at = None, self.done

    @property
    def rate(self) -> float | None:
        """Steps per second, or `None` before the second report."""
        if self._first is None or self.done == self._first[0]:
            return None
        return (self.done - self._first[0]) / max(time.monotonic() - self._first[1], 1e-9)

    @property
    def details(self) -> str:
        """Text, rate and estimated remaining time."""
        rate = self.rate
        parts = [self.text] if self.text else []
        if rate is not None:
            parts.append(f"{rate:.3g} {self.unit or 'steps'}/s")
            parts.append(f"{_duration((self.total - self.done) / rate)} left")
        return ", ".join(parts)

    def __str__(self) -> str:
        share = f"{self.done:,} of {self.total:,} {self.unit}".rstrip()
        return f"{self.label}: {share}" + (f", {self.details}" if self.details else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _has_screen() -> bool:
    from rich.console import Console

    console = Console(stderr=True)
    return console.is_terminal or console.is_jupyter


@contextlib.contextmanager
def _bar(state: _State) -> Iterator[ProgressDisplay]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
    )
    columns += (TimeElapsedColumn(), TextColumn("{task.fields[details]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(state.label, total=state.total, completed=state.done, details="")

        class Display:
            def update(self, done: int, text: str = "") -> None:
                state.update(done, text)
                bar.update(task, completed=state.done, details=state.details)

            def advance(self, count: int, text: str = "") -> None:
                self.update(state.done + count, text)

            def restart(self) -> None:
                state.restart()

        yield Display()


@contextlib.contextmanager
def _lines(state: _State) -> Iterator[None]:
    ended = threading.Event()

    def write_line() -> None:
        print(f"{time.strftime('%H:%M:%S')} {state}", file=sys.stderr, flush=True)

    def write_regularly() -> None:
        # In a separate thread, so that lines also appear during a long step.
        while not ended.wait(_SECONDS_BETWEEN_LINES):
            write_line()

    write_line()
    thread = threading.Thread(target=write_regularly, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write_line()
