"""One progress display for all long work: a bar in a terminal or a notebook, dated lines in a log file.

    with show_progress("sampling", total=64, unit="images") as progress:
        progress.advance(8)

Both go to the standard error stream. The bar needs rich, which the core does not depend on; without it there are lines.
"""

import contextlib
import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

# Often enough that a log shows within a minute whether a run is alive.
_SECONDS_BETWEEN_LINES = 25.0


class ProgressDisplay(Protocol):
    """What long work reports to."""

    def update(self, done: int, text: str = "") -> None:
        """So much of the total is done; `text`, such as a loss, is shown beside it."""
        ...

    def advance(self, count: int, text: str = "") -> None:
        """So much more is done."""
        ...


@contextlib.contextmanager
def show_progress(
    label: str, *, total: int, done: int = 0, unit: str = "", shown: bool = True
) -> Iterator[ProgressDisplay]:
    """A display for work of `total` steps, of which an earlier run did the first `done`.

    The rate counts the steps of this run only, from the end of the first one, which contains the compilation.
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
    """How far the work is, and how fast it goes."""

    def __init__(self, label: str, total: int, done: int, unit: str):
        self.label, self.total, self.done, self.unit, self.text = label, total, done, unit, ""
        # Number of steps and moment from which the rate is measured.
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

    @property
    def rate(self) -> float | None:
        """Steps per second, or `None` until two moments are known."""
        if self._first is None or self.done == self._first[0]:
            return None
        return (self.done - self._first[0]) / max(time.monotonic() - self._first[1], 1e-9)

    @property
    def details(self) -> str:
        """Text, rate and the time that is left."""
        rate = self.rate
        parts = [self.text] if self.text else []
        if rate is not None:
            parts.append(f"{rate:.3g} {self.unit or 'steps'}/s")
            parts.append(f"{_clock((self.total - self.done) / rate)} left")
        return ", ".join(parts)

    def __str__(self) -> str:
        share = f"{self.done:,} of {self.total:,} {self.unit}".rstrip()
        return f"{self.label}: {share}" + (f", {self.details}" if self.details else "")


def _clock(seconds: float) -> str:
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

        yield Display()


@contextlib.contextmanager
def _lines(state: _State) -> Iterator[None]:
    ended = threading.Event()

    def tell() -> None:
        print(f"{time.strftime('%H:%M:%S')} {state}", file=sys.stderr, flush=True)

    def tell_regularly() -> None:
        # From a thread of its own, so that lines also appear while one step is long.
        while not ended.wait(_SECONDS_BETWEEN_LINES):
            tell()

    tell()
    thread = threading.Thread(target=tell_regularly, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        tell()
