"""Stopping between two steps instead of in the middle of one."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# Ctrl-C, and what a batch system or a container sends before it kills.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingStopped(KeyboardInterrupt):
    """Training ended on a signal after it had written a checkpoint. `signum` is the signal's number."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


class StopRequest:
    """A context in which the first SIGINT or SIGTERM is only recorded, in `signum`; a second one has its usual effect.
    Python delivers signals to its main thread, so in another thread nothing is recorded."""

    signum: int | None = None

    def __enter__(self) -> "StopRequest":
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            # A handler that was not set by Python reads as None and cannot be set.
            if handler is not None:
                signal.signal(number, handler)
        self._before = {}
