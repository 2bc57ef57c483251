"""Curves of error against cost from the rows of `_runs.measure`: costs at a given error, tables, pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from mlem_jax._calibration.envelope import cost_to_reach, envelope

Row = dict[str, Any]


def cost_at(costs: Sequence[float], errors: Sequence[float], error: float) -> float:
    """The cost at which a method reaches an error, interpolated along the lower envelope of its points on logarithmic
    axes. Infinite if no point reaches the error; the cost of the cheapest point if that reaches it."""
    x, y = np.asarray(costs, float), np.asarray(errors, float)
    return cost_to_reach(*envelope(x[np.isfinite(y)], y[np.isfinite(y)]), error)


def by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each method."""
    methods: dict[str, list[Row]] = {}
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    return methods


def costs_to_reach(
    rows: Sequence[Row], targets: Sequence[float], unit: str = "batch_cost"
) -> dict[str, np.ndarray]:
    """For each method and batch, the cost at which the error of the batch is its target. `unit` is `"batch_cost"`
    (finest-level evaluations) or `"seconds"` (one number for all batches)."""
    found = {}
    for name, mine in by_method(rows).items():
        per_batch = []
        for batch, target in enumerate(targets):
            costs = [row[unit][batch] if isinstance(row[unit], list) else row[unit] for row in mine]
            per_batch.append(cost_at(costs, [row["batch_error"][batch] for row in mine], target))
        found[name] = np.array(per_batch)
    return found


def best_grid(rows: Sequence[Row]) -> list[Row]:
    """For each method and number of steps, the grid with the smallest error; rows without a grid are kept."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = (row["method"], row["steps"], row["setting"] if row["grid"] is None else None)
        if key not in found or row["error"] < found[key]["error"]:
            found[key] = row
    return list(found.values())


def summary(values: np.ndarray) -> dict[str, float | None]:
    """Median and range over batches; `None` where the error is not reached."""
    numbers = (np.median(values), np.min(values), np.max(values))
    return {
        name: float(value) if np.isfinite(value) else None
        for name, value in zip(("median", "min", "max"), numbers, strict=True)
    }


def draw_curves(
    panels: Sequence[tuple[str, Sequence[Row]]],
    *,
    x: str,
    x_label: str,
    y_label: str,
) -> Figure:
    """Error against cost: one panel for each title and its rows, one line for each method."""
    figure = Figure(figsize=(6.2 * len(panels), 5.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    names = list(dict.fromkeys(row["method"] for _, rows in panels for row in rows))
    for axis, (title, rows) in zip(axes, panels, strict=True):
        for name, mine in by_method(rows).items():
            usable = sorted((row for row in mine if np.isfinite(row["error"])), key=lambda row: row[x])
            number = names.index(name)
            axis.errorbar(
                [row[x] for row in usable],
                [row["error"] for row in usable],
                yerr=[row["error_sd"] for row in usable],
                color=f"C{number % 10}",
                linestyle="-" if number < 10 else "--",
                marker=".",
                label=name,
                capsize=2,
                # Lines of the library's methods are thicker than those of the rivals.
                linewidth=2.4 if mine[0].get("multilevel") else 1.0,
                elinewidth=0.6,
            )
        decimal_logarithms(axis)
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=7)
    return figure


def decimal_logarithms(axis: Axes) -> None:
    """Logarithmic axes with decimal numbers, few enough not to overlap."""
    axis.set(xscale="log", yscale="log")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        scale.set_major_formatter("{x:g}")
        scale.set_minor_formatter(NullFormatter())


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table for a report."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
