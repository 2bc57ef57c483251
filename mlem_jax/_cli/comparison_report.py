"""Table and pictures of a comparison."""

import math
from pathlib import Path

import jax.random as jr
import numpy as np
from rich import box
from rich.table import Table

from .. import plot
from .comparison import Comparison, Row


def _by_method(comparison: Comparison) -> dict[str, list[Row]]:
    """Of the methods whose cost can be chosen only the rows about as expensive as the plan."""
    methods: dict[str, list[Row]] = {}
    for method in dict.fromkeys(row.method for row in comparison.rows):
        mine = [row for row in comparison.rows if row.method == method]
        nearest = min(
            mine, key=lambda row: abs(math.log(row.finest_evaluations / comparison.ours.finest_evaluations))
        )
        methods[method] = [row for row in mine if row.steps == nearest.steps]
    return methods


def _mean_and_deviation(values: list[float]) -> str:
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.3f}"


def comparison_table(comparison: Comparison) -> Table:
    """A row for each method, means over the seeds of its coins."""
    # Narrow enough for 80 columns.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("method", no_wrap=True)
    for name in ("RMS", "median", "geometric", "evals", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for method, rows in _by_method(comparison).items():
        table.add_row(
            method,
            _mean_and_deviation([row.error for row in rows]),
            f"{np.mean([row.median_error for row in rows]):.3f}",
            f"{np.mean([row.typical_error for row in rows]):.3f}",
            f"{np.mean([row.finest_evaluations for row in rows]):.1f}",
            f"{np.mean([row.seconds for row in rows]):.2f}",
        )
    return table


def draw_comparison(comparison: Comparison, out: Path) -> None:
    """Writes `samples.png` and `coins.png` into a folder."""
    methods = _by_method(comparison)
    strips = []
    for method, images in comparison.images.items():
        rows = methods.get(method)
        label = method
        if rows:
            label += (
                f": {rows[0].finest_evaluations:.1f} finest evaluations, error {rows[0].typical_error:.3f}"
            )
        strips.append((label, images))
    plot.save_figure(plot.samples(strips), out / "samples.png")
    panels = [
        (f"{method}: {report.finest_evaluations:.1f} finest evaluations", report)
        for method, report in comparison.reports.items()
    ]
    label = "s = sigma / alpha (sampling goes from right to left)"
    if panels:
        levels = list(comparison.levels.values())
        figure = plot.firings(panels, levels=levels, time_label=label, log_time=True)
    else:
        figure = plot.plan_raster(comparison.plan, key=jr.key(0), time_label=label, log_time=True)
    plot.save_figure(figure, out / "coins.png")
