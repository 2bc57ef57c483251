"""Study 11: does the gain of several levels grow with the finest network?

Run `python benchmarks/trend.py` (seconds). It reads the results of studies 8 and 9 on the shipped ladder
(`results/fitted.json`, `results/quality_ode.json`) and of study 6 on two ladders of heads
(`results/faces_quick_fitted.json`, `_quality.json`; other sizes with `--size full`), and writes
`results/trend.json`, `trend.csv` and a picture.

The rival is the finest network alone with fitted steps, with 4 and with 6 evaluations. The gain is how many times fewer
evaluations several levels with fitted steps need at the rival's geometric mean error (median and range over batches),
and at the rival's distribution (excess over the converged sampler from the same noise, by each of three measures).
Ladders differ in data and training too, and not in the finest network's size alone.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from _curves import markdown, Row
from _fitted_methods import ALONE_FITTED, SEVERAL_FITTED
from _harness import RESULTS, write_results, write_table
from _quality_measures import SHORT
from _quality_methods import SEVERAL_LAW
from matplotlib.figure import Figure

from mlem_jax.diffusion import load_ladder
from mlem_jax.plot import save_figure

# Evaluations of the finest network alone.
RIVALS = (4, 6)
ERROR = "error"
MARKERS = {ERROR: "o", **dict(zip(SHORT.values(), "s^v", strict=True))}


class Case(NamedTuple):
    """A ladder: its name, the million FLOPs of its finest network, and what studies 8 and 9 found on it."""

    name: str
    mflops: float
    fitted: dict[str, Any]
    quality: dict[str, Any]


def gains(case: Case) -> list[Row]:
    """A row for each rival and measure. `gain` is `None` where several levels do not reach the rival."""
    rows = []
    for rival in RIVALS:
        found = _compared(case.fitted["compared"], rival)
        common = {"ladder": case.name, "mflops": case.mflops, "rival": rival}
        if found is not None:
            # 0 where the error is not reached.
            factors = {name: value or None for name, value in found["times_fewer"].items()}
            rows.append(
                {
                    **common,
                    "measure": ERROR,
                    "gain": factors["median"],
                    "least": factors["min"],
                    "most": factors["max"],
                }
            )
        for row in case.quality["equal_quality"]:
            if (row["single"], row["target"], row["method"]) == (rival, "same", SEVERAL_LAW):
                gain = None if row["cost"] is None else rival / row["cost"]
                rows.append({**common, "measure": row["measure"], "gain": gain, "least": gain, "most": gain})
    return rows


def _compared(table: Sequence[Row], rival: int) -> Row | None:
    """The comparison of several levels with the finest one alone with that many evaluations."""
    for row in table:
        ours = row["method"] == SEVERAL_FITTED and row["rival"].startswith(ALONE_FITTED)
        if ours and round(row["rival_cost"]) == rival:
            return row
    return None


def cases(size: str) -> list[Case]:
    """The shipped ladder, and those of heads. Raises `FileNotFoundError` for a study that has not been run."""

    def read(name: str) -> dict[str, Any]:
        return json.loads((RESULTS / f"{name}.json").read_text())

    shipped = load_ladder().flops()[-1] / 1e6
    found = [Case("Fashion-MNIST", shipped, read("fitted"), read("quality_ode"))]
    fitted, quality, levels = (
        read(f"faces_{size}_{part}")["studies"] for part in ("fitted", "quality", "levels")
    )
    for name, words in (("without the finest", "heads, without the finest"), ("matched", "heads")):
        found.append(Case(words, levels[name]["rows"][-1]["mflops"], fitted[name], quality[name]))
    return found


def draw(rows: Sequence[Row]) -> Figure:
    """The gain on each ladder, by the size of its finest network: a panel for each rival, a mark for each measure."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    ladders = sorted({(row["mflops"], row["ladder"]) for row in rows})
    for axis, rival in zip(figure.subplots(1, len(RIVALS), sharey=True), RIVALS, strict=True):
        for number, (measure, marker) in enumerate(MARKERS.items()):
            shift = 0.14 * (number - (len(MARKERS) - 1) / 2)
            label = measure
            for place, (_, ladder) in enumerate(ladders):
                where = (ladder, rival, measure)
                row = next((r for r in rows if (r["ladder"], r["rival"], r["measure"]) == where), None)
                if row is None:
                    continue
                if row["gain"] is None:
                    axis.text(
                        place + shift,
                        0.1,
                        "not reached",
                        rotation=90,
                        ha="center",
                        color=f"C{number}",
                        size=9,
                    )
                    continue
                # The rival's error may not be reached on every batch.
                ends = [row["gain"] - (row["least"] or 0), (row["most"] or row["gain"]) - row["gain"]]
                bars = np.abs(np.array(ends)).reshape(2, 1)
                style = {"marker": marker, "color": f"C{number}", "capsize": 3, "label": label}
                axis.errorbar([place + shift], [row["gain"]], bars, linestyle="none", **style)
                label = None
        axis.axhline(1, color="0.6", linewidth=0.8)
        axis.set_xticks(range(len(ladders)), [f"{name}\n{mflops:.0f} MFLOP" for mflops, name in ladders])
        axis.set(
            xlim=(-0.5, len(ladders) - 0.5),
            ylim=(0, None),
            title=f"the finest alone with {rival} evaluations",
        )
        axis.grid(alpha=0.3, axis="y")
        axis.legend(fontsize=8)
    figure.axes[0].set_ylabel("times fewer evaluations of several levels")
    return figure


def report(rows: Sequence[Row]) -> str:
    """A line for each ladder and rival."""
    lines = []
    for ladder, rival in dict.fromkeys((row["ladder"], row["rival"]) for row in rows):
        mine = {row["measure"]: row for row in rows if (row["ladder"], row["rival"]) == (ladder, rival)}
        cells = ["-" if m not in mine else _shown(mine[m]["gain"]) for m in MARKERS]
        lines.append([ladder, f"{next(iter(mine.values()))['mflops']:.0f}", str(rival), *cells])
    return markdown(["ladder", "MFLOP", "finest alone, evaluations", *MARKERS], lines)


def _shown(gain: float | None) -> str:
    return "not reached" if gain is None else f"{gain:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=("quick", "full"), default="quick", help="of the study of faces")
    try:
        rows = [row for case in cases(parser.parse_args().size) for row in gains(case)]
    except FileNotFoundError as missing:
        sys.exit(f"{missing.filename} is missing: run its study first, see benchmarks/README.md.")
    print(report(rows))
    save_figure(draw(rows), RESULTS / "trend.png")
    write_table("trend", rows)
    print("written:", write_results("trend", {"rows": rows}))


if __name__ == "__main__":
    main()
