"""Figures of samples, of the evaluations of each level, and of calibrations and their plans.

Each function returns a [`matplotlib.figure.Figure`][]. A notebook shows it if it is the last expression of a cell (with
`%matplotlib inline`, the default there), and [`mlem_jax.plot.save_figure`][] writes it. No display is needed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, PRNGKeyArray

from ._extras import require

require("mlem_jax.plot", "plot", "matplotlib")

from matplotlib.figure import Figure

from ._calibration import Calibration, FittedPlan, Plan
from ._io import write_safely
from ._solver import EvaluationReport

# An error this many times the least one of its level is that of a solve that diverged.
_DIVERGED = 1e3


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG, atomically. Raises `OSError` if the disk is full."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safely(path, lambda file: figure.savefig(file, dpi=150, format="png"))


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
    reports: Sequence[tuple[str, EvaluationReport]],
    *,
    levels: Sequence[Sequence[int]] | None = None,
    time_label: str = "t",
    log_time: bool = False,
) -> Figure:
    """The times at which each level was evaluated: one panel per report, one line of marks per level.

    **Arguments:** `reports`, pairs of a label and a report; `levels`, for each report the indices of its levels
    (`plan.levels`), which determine names and colours if a plan has left out some levels.

    Raises `ValueError` for a report without a record, `MLEM(..., record=number_of_steps)`.
    """
    figure = Figure(figsize=(8, 0.7 + 1.4 * len(reports)), layout="constrained")
    axes = figure.subplots(len(reports), 1, squeeze=False, sharex=True)[:, 0]
    for panel, (axis, (label, report)) in enumerate(zip(axes, reports, strict=True)):
        if report.evaluation_times is None:
            raise ValueError(
                f"The report of {label!r} has no record of its firings; solve with "
                "record=number_of_steps among the solver's settings."
            )
        kept = range(len(report.evaluation_times)) if levels is None else levels[panel]
        _raster(axis, report.evaluation_times, kept)
        axis.set_title(label, fontsize=9, loc="left")
        if log_time:
            axis.set_xscale("log")
    axes[-1].set_xlabel(time_label)
    return figure


def _raster(axis: Any, times: Sequence[Float[np.ndarray, " _"]], levels: Sequence[int]) -> None:
    names: list[Any] = []
    for line, (marks, k) in enumerate(zip(times, levels, strict=True)):
        axis.eventplot(marks, lineoffsets=line, linelengths=0.7, linewidths=1.2, color=f"C{k}")
        names.append(f"level {k + 1}: {len(marks)}")
    axis.set_yticks(range(len(names)), names, fontsize=8)


def increments(calibration: Calibration, *, time_label: str = "t", log_time: bool = False) -> Figure:
    """The sizes of the levels' increments over time, and their effects on the end state."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    measured = calibration.measurements
    for k in range(measured.num_levels):
        for axis, values in zip(axes, (measured.increment_rms, measured.effect_rms), strict=True):
            axis.plot(measured.ts[:-1], values[:, k], color=f"C{k}", label=f"level {k + 1}")
    for axis, title in zip(axes, ("increment (RMS)", "effect on the end state (RMS)"), strict=True):
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_yscale("log")
        axis.set_xlabel(time_label)
        if log_time:
            axis.set_xscale("log")
    axes[0].legend(fontsize=8)
    return figure


def error_against_cost(calibration: Calibration, plans: Sequence[Plan] = ()) -> Figure:
    """The measured error of each level alone and the predicted errors of plans (one line per coin policy), against cost
    in finest-level evaluations."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    measured = calibration.measurements
    for k in range(measured.num_levels):
        costs, errors = measured.single_steps * measured.costs[k], measured.single_error[k]
        # A solve that diverged must not determine the scale of the axis.
        errors = np.where(errors < _DIVERGED * np.nanmin(errors), errors, np.nan)
        axis.loglog(
            costs, errors, ".-", color=f"C{k}", label=f"{measured.method.single_level_name}, level {k + 1}"
        )
    names = dict.fromkeys(plan.coins.name for plan in plans)
    for i, name in enumerate(names, start=measured.num_levels):
        mine = sorted((p.cost, p.error) for p in plans if p.coins.name == name)
        axis.loglog(
            *zip(*mine, strict=True), "--", color=f"C{i}", marker="s", markersize=4, label=f"plan, {name}"
        )
    axis.set_xlabel("cost in finest-level evaluations")
    axis.set_ylabel("RMS error of the end state")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    return figure


def plan_raster(
    plan: Plan | FittedPlan, *, key: PRNGKeyArray, time_label: str = "t", log_time: bool = False
) -> Figure:
    """The steps in which each level of a plan fires with this key, or is evaluated by fitted steps. No level is
    evaluated for the figure."""
    fired = plan.firing_pattern(key=key)
    figure = Figure(figsize=(8, 0.9 + 0.35 * len(plan.levels)), layout="constrained")
    axis = figure.subplots()
    _raster(axis, [plan.ts[:-1][fired[:, k]] for k in range(len(plan.levels))], plan.levels)
    axis.set_xlabel(time_label)
    name = plan.coins.name if isinstance(plan, Plan) else "fitted steps"
    axis.set_title(f"{name}, predicted error {plan.error:.3g}", fontsize=9, loc="left")
    if log_time:
        axis.set_xscale("log")
    return figure
