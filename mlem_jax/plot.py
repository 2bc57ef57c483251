"""Pictures: samples side by side, and when which level was evaluated. Needs no display."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from ._report import EvaluationReport


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG: to a temporary file beside the target, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".png", dir=path.parent)
    os.close(handle)
    try:
        figure.savefig(temporary, dpi=150)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def samples(rows: Sequence[tuple[str, Float[np.ndarray, "n h w"]]], *, columns: int = 10) -> Figure:
    """The same images by several methods: one labelled row of grey images for each.

    **Arguments:** `rows`, pairs of a label and images `(n, h, w)` with values in `[-1, 1]` (others are
    clipped); `columns`, how many of the images are shown.
    """
    columns = min(columns, rows[0][1].shape[0])
    figure = Figure(figsize=(0.8 * columns, 1.02 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, (label, images) in zip(axes, rows, strict=True):
        strip = np.concatenate(list(images[:columns]), axis=1)
        axis.imshow(strip, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        for side in axis.spines.values():
            side.set_visible(False)
        axis.set_title(label, loc="left", fontsize=8, pad=2)
    return figure


def firings(
    reports: Sequence[tuple[str, EvaluationReport]], *, time_label: str = "t", log_time: bool = False
) -> Figure:
    """When each level was evaluated: one panel per report, one line of marks per level.

    The reports need a record, `MLEM(..., record=number_of_steps)`; raises `ValueError` without.
    """
    figure = Figure(figsize=(8, 0.7 + 1.4 * len(reports)), layout="constrained")
    axes = figure.subplots(len(reports), 1, squeeze=False, sharex=True)[:, 0]
    for axis, (label, report) in zip(axes, reports, strict=True):
        if report.evaluation_times is None:
            raise ValueError(
                f"The report of {label!r} has no record of its firings; solve with "
                "MLEM(..., record=number_of_steps)."
            )
        names: list[Any] = []
        for k, times in enumerate(report.evaluation_times):
            axis.eventplot(times, lineoffsets=k, linelengths=0.7, linewidths=1.2, color=f"C{k}")
            names.append(f"level {k + 1}: {len(times)}")
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_title(label, fontsize=9, loc="left")
        if log_time:
            axis.set_xscale("log")
    axes[-1].set_xlabel(time_label)
    return figure
