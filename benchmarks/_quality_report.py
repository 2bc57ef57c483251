"""What the study of quality says: its table, costs at equal quality, curves, and the same noise by every method."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from _curves import by_method, cost_at, markdown, Row
from _quality_images import Entry, Made
from _quality_measures import MEASURES, SHORT
from _quality_methods import CONVERGED, DPM, INDEPENDENT, LAW, PATH, SEVERAL, SEVERAL_LAW
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Numbers of evaluations of the fitted single network at whose quality costs are compared.
SINGLE = (4, 5, 6, 8)
# Excesses that are not larger than zero count as this much, on logarithmic axes.
LEAST = 1e-9
# What images are compared with: the converged sampler's from the same and from other noise, real ones.
TARGETS = ("same", "other", "real")
# Costs at which the sheet shows every method, by which factor a method's own cost may differ, and how
# many images.
COSTS, SLACK, COLUMNS = (1.6, 2.6, 3.7), 1.5, 8

# Ticks of the curves' axis of cost.
TICKS = (0.1, 0.25, 0.5, 1, 2, 3, 4, 6, 8)
# Rows of images with little space between them.
CLOSE = ConstrainedLayoutEngine(hspace=0.0, h_pad=0.02)
# The rows of the headline picture.
HEADLINE = {
    (DPM,): "DPM-Solver++(2M), largest network",
    (LAW,): "largest network, fitted steps",
    (INDEPENDENT,): "four networks, the paper's coins",
    (SEVERAL_LAW,): "several networks, fitted steps",
}


def within_noise(row: Row, target: str) -> bool:
    """Whether no measure is more than two standard errors above the floor."""
    keys = [f"{SHORT[measure]}_to_{target}" for measure in MEASURES]
    return all(row[f"{key}_excess"] < 2 * row[f"{key}_error"] for key in keys)


def equal_quality(rows: Sequence[Row]) -> list[Row]:
    """For each method, target and measure the cost at which it has the excess of the fitted single network: of the
    smaller one of those searched for the path and for the distribution."""
    methods, table = by_method(rows), []
    single = [row for row in rows if row["method"] in (PATH, LAW)]
    for steps in SINGLE:
        best = [row for row in single if round(row["cost"]) == steps]
        for target in TARGETS if best else ():
            for short in SHORT.values():
                key = f"{short}_to_{target}_excess"
                wanted = min(row[key] for row in best)
                for name, mine in methods.items():
                    excesses = [max(row[key], LEAST) for row in mine]
                    cost = cost_at([row["cost"] for row in mine], excesses, max(wanted, LEAST))
                    table.append(
                        {
                            "single": steps,
                            "target": target,
                            "measure": short,
                            "excess": wanted,
                            "method": name,
                            "cost": cost if np.isfinite(cost) else None,
                        }
                    )
    return table


def report(found: dict[str, Any]) -> str:
    """Three tables: excesses, costs at equal quality, and where a method is within the noise of the floor."""
    rows = found["rows"]
    columns = [(target, short) for target in TARGETS for short in SHORT.values()]
    header = ["method", "cost", *(f"{short} to {target}" for target, short in columns)]
    lines = []
    for row in rows:
        cells = [f"{row['method']}, {row['setting']}", f"{row['cost']:.2f}"]
        for target, short in columns:
            key = f"{short}_to_{target}"
            cells.append(f"{row[f'{key}_excess']:+.4f} ± {row[f'{key}_error']:.4f}")
        lines.append(cells)
    found["equal_quality"] = equal_quality(rows)
    parts = [f"excess over the floor, {found['images']} images", markdown(header, lines)]
    ours = [row for row in found["equal_quality"] if row["method"] in (SEVERAL, SEVERAL_LAW)]
    if ours:
        costs = [
            [str(row["single"]), row["target"], row["measure"], f"{row['excess']:.4f}", row["method"],
             "not reached" if row["cost"] is None else f"{row['cost']:.2f}"]
            for row in ours
        ]  # fmt: skip
        parts.append(markdown(["evaluations alone", "to", "measure", "excess", "method", "cost"], costs))
    for target in TARGETS[1:]:
        words = []
        for name, mine in by_method(rows).items():
            enough = [row["cost"] for row in mine if within_noise(row, target)]
            words.append(f"{name}: {f'{min(enough):.2f}' if enough else 'not reached'}")
        parts.append(f"within two standard errors of the floor to {target} at a cost of: " + "; ".join(words))
    return "\n\n".join(parts)


def curves(found: dict[str, Any]) -> Figure:
    """Excess against cost: a panel for each measure and target, a line for each method."""
    figure = Figure(figsize=(15, 14), layout="constrained")
    panels = figure.subplots(len(TARGETS), len(MEASURES))
    methods = by_method(found["rows"])
    for axes, target in zip(panels, TARGETS, strict=True):
        for axis, measure in zip(axes, MEASURES, strict=True):
            key = f"{SHORT[measure]}_to_{target}"
            # Below its standard error an excess is nothing.
            floor = float(np.median([row[f"{key}_error"] for row in found["rows"]]))
            for number, (name, mine) in enumerate(methods.items()):
                mine = sorted(mine, key=lambda row: row["cost"])
                axis.plot(
                    [row["cost"] for row in mine],
                    [max(row[f"{key}_excess"], floor / 2) for row in mine],
                    marker=".",
                    color=f"C{number % 10}",
                    linestyle="-" if number < 10 else "--",
                    linewidth=2.4 if name in (SEVERAL, SEVERAL_LAW) else 1.0,
                    label=name,
                )
            axis.axhspan(0, 2 * floor, color="0.9")
            axis.set(xscale="log", yscale="log", title=f"{measure} to {target}", xlabel="finest evaluations")
            axis.set_ylim(bottom=floor / 2)
            axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    panels[0, 0].set_ylabel("excess over the floor (grey: within two standard errors)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def sheet(shown: Sequence[tuple[Entry, Made]]) -> Figure:
    """The same noise by every method at each of `COSTS`: images of about that cost, and of several levels those of at
    most that cost. Methods of other costs are left out."""
    kinds = list(dict.fromkeys(entry.kind for entry, _ in shown if entry.kind != CONVERGED))
    table = {}
    for kind in kinds:
        row = []
        for wanted in COSTS:
            mine = [made for entry, made in shown if entry.kind == kind]
            if kind in (SEVERAL, SEVERAL_LAW):
                mine = [made for made in mine if made.cost <= wanted]
            mine = [made for made in mine if 1 / SLACK < made.cost / wanted < SLACK]
            row.append(
                min(mine, key=lambda made: abs(np.log(made.cost / wanted)) - 1e-3 * made.cost, default=None)
            )
        if any(row):
            table[kind] = row
    reference = next(made for entry, made in shown if entry.kind == CONVERGED)
    table[CONVERGED] = [reference] * len(COSTS)
    figure = Figure(figsize=(5.6 * len(COSTS), 0.85 * len(table)), layout=CLOSE)
    axes = figure.subplots(len(table), len(COSTS), squeeze=False)
    for line, (kind, row) in zip(axes, table.items(), strict=True):
        for axis, made in zip(line, row, strict=True):
            _strip(axis, kind if made is None else f"{kind}: {made.cost:.2f}", made)
            if made is None:
                axis.text(0.0, 0.5, "not at this cost", color="0.5", transform=axis.transAxes)
    return figure


def headline(shown: Sequence[tuple[Entry, Made]]) -> Figure:
    """The same noise by a few methods at each of `COSTS`: rivals at that cost or the next higher one, several levels at
    that cost or the next lower one."""
    reference = next(made for entry, made in shown if entry.kind == CONVERGED)
    figure = Figure(figsize=(4.4 * len(COSTS), 0.78 * (len(HEADLINE) + 1)), layout=CLOSE)
    axes = figure.subplots(len(HEADLINE) + 1, len(COSTS), squeeze=False)
    for column, wanted in enumerate(COSTS):
        for axis, (kinds, label) in zip(axes[:, column], HEADLINE.items(), strict=False):
            mine = [made for entry, made in shown if entry.kind in kinds]
            if SEVERAL_LAW in kinds:
                chosen = max((made for made in mine if made.cost <= wanted), key=lambda made: made.cost)
            else:
                # Budgets are met up to the chance of the coins.
                enough = [made for made in mine if made.cost > 0.9 * wanted]
                chosen = min(enough, key=lambda made: made.cost)
            _strip(axis, f"{label}: {chosen.cost:.1f} evaluations", chosen)
        _strip(axes[-1, column], f"converged: {reference.cost:.0f} evaluations", reference)
    return figure


def _strip(axis: Any, label: str, made: Made | None) -> None:
    axis.set_axis_off()
    axis.set_title(label, loc="left", fontsize=8, pad=2)
    if made is not None:
        strip = np.concatenate(list(made.images[:COLUMNS]), axis=1) / 2 + 0.5
        # Images of one channel are grey; the limits apply to them alone.
        axis.imshow(strip.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
