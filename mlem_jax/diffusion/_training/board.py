"""Losses and sheets of a stage of training, for TensorBoard."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..._extras import require


def check_tensorboard(wanted: bool) -> None:
    """Raises `ModuleNotFoundError`, with the command that installs it, where the writer is wanted and missing."""
    if wanted:
        require("tensorboard = true", "tensorboard", "tensorboardX")


class Board:
    """Writes event files, which `tensorboard --logdir FOLDER` shows: `loss/level_1` and so on every 50 steps, and with
    every sheet `held_out_loss/level_1` and so on, and the sheet.

    **Arguments:** `folder`; `levels`, the numbers of the networks, from 1.
    """

    def __init__(self, folder: Path, levels: Sequence[int]):
        self._folder, self._levels = folder, levels
        self._writer: Any = None

    def losses(self, step: int, losses: np.ndarray) -> None:
        """The mean losses of the last steps, one for each network."""
        self._scalars("loss", step, losses)

    def sheet(self, step: int, pixels: np.ndarray, losses: Sequence[float]) -> None:
        """A picture in colour, `(height, width, 3)` bytes, and held-out losses, one for each network."""
        self._scalars("held_out_loss", step, losses)
        self._file(step).add_image("sheet", pixels, step, dataformats="HWC")

    def _scalars(self, name: str, step: int, values: Sequence[float] | np.ndarray) -> None:
        for level, value in zip(self._levels, values, strict=True):
            self._file(step).add_scalar(f"{name}/level_{level}", float(value), step)

    def _file(self, step: int) -> Any:
        """The writer, of which `step` is the first one. Steps that a killed run had written beyond its last checkpoint
        are repeated, and TensorBoard then shows the last ones."""
        if self._writer is None:
            # Only now, because it is an extra of its own.
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        return self._writer

    def close(self) -> None:
        """Closes the file, if there is one."""
        if self._writer is not None:
            self._writer.close()


@contextlib.contextmanager
def open_board(wanted: bool, folder: Path, levels: Sequence[int]) -> Iterator[Board | None]:
    """A board that is closed at the end, or `None` where none is wanted."""
    board = Board(folder, levels) if wanted else None
    try:
        yield board
    finally:
        if board is not None:
            board.close()
