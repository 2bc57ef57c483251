"""Study 11: does the gain of several levels grow with the finest network?

Run `python benchmarks/trend.py` (seconds). It reads the results of studies 8 and 9 on the shipped ladder
(`results/fitted.json`, `results/quality_ode.json`) and of study 6 on two ladders of heads
(`results/faces_quick_fitted.json`, `_quality.json`; other sizes with `--size full`), and writes
`results/trend.json`, `trend.csv` and a picture.

The rival is the finest network alone with fitted steps, with 4 and with 6 evaluations. The gain is how many times fewer
evaluations several levels with fitted steps need at the rival's geometric mean error (median and range over batches),
and at the rival's distribution (excess over the converged sampler from the same noise, by each of three measures).
Ladders differ in data and training too, and not in the finest network's size alone.

A second table has the gain of the shipped ladder in seconds: those that study 8 measured, for errors, and for the
distributions that study 9 found of the same steps.

A third table has the gain in error for the largest ladder of heads in seconds of an accelerator: the evaluations
of each level times what one takes there, from study 12 (`results/gpu.json`). These are no measured solves.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from _curves import cost_at, markdown, Row
from _fitted_methods import ALONE_FITTED, SEVERAL_FITTED
from _fitted_report import compared, report as comparison, rivals_of
from _harness import RESULTS, write_results, write_table
from _quality_measures import SHORT
from _quality_methods import SEVERAL_LAW
from _quality_report import LEAST
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from mlem_jax.diffusion import load_ladder
from mlem_jax.plot import save_figure

# Evaluations of the finest network alone.
RIVALS = (4, 6)
# The same, where there is more room.
MORE_RIVALS = (2, 3, 4, 5, 6)
# The MFLOP of the finest network of faces_large.toml, in the names of its results.
LARGE = 2944
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
    stem = f"faces_{size}_{LARGE}_mflop"
    large, judged = (read(f"{stem}_{part}")["studies"]["matched"] for part in ("fitted", "quality"))
    found.append(Case("heads, one more level", LARGE, large, judged))
    return found


def in_seconds(case: Case) -> list[Row]:
    """The gain in error and in the distribution in seconds, for each number of evaluations of the finest level alone.
    Study 9 takes no times; those of the same steps are from study 8. Steps without a time are left out."""
    seconds = {row["setting"]: row["seconds"] for row in case.fitted["rows"]}
    timed = [
        {**row, "seconds": seconds[row["setting"]]}
        for row in case.quality["rows"]
        if row["method"] == SEVERAL_LAW and row["setting"] in seconds
    ]
    alone = {row["steps"]: row["seconds"] for row in case.fitted["rows"] if row["method"] == ALONE_FITTED}
    rows = []
    for row in case.fitted["compared_seconds"]:
        if row["method"] == SEVERAL_FITTED and row["rival"].startswith(ALONE_FITTED):
            gain = row["times_fewer"]["median"] or None
            steps = int(row["rival"].removeprefix(f"{ALONE_FITTED}, ").split()[0])
            rows.append({"rival": steps, "measure": ERROR, "gain": gain})
    for row in case.quality["equal_quality"]:
        if (row["target"], row["method"]) == ("same", SEVERAL_LAW) and row["single"] in alone:
            excesses = [max(mine[f"{row['measure']}_to_same_excess"], LEAST) for mine in timed]
            needed = cost_at([mine["seconds"] for mine in timed], excesses, max(row["excess"], LEAST))
            gain = alone[row["single"]] / needed if np.isfinite(needed) else None
            rows.append({"rival": row["single"], "measure": row["measure"], "gain": gain})
    return [{"ladder": case.name, "mflops": case.mflops, **row} for row in rows]


def on_an_accelerator(case: Case, times: Sequence[Row]) -> dict[str, list[Row]]:
    """By batch size, the gain in error in seconds of an accelerator, from the times of its levels. Batch sizes whose
    times are incomplete are left out."""
    found = {}
    rows = [row for row in case.fitted["rows"] if row["evaluations"] is not None]
    needed = {k + 1 for row in rows for k, count in enumerate(row["evaluations"]) if count}
    for batch in sorted({row["batch"] for row in times}):
        mine = {
            row["level"]: row["milliseconds"]
            for row in times
            if row["batch"] == batch and row["precision"] == "float32"
        }
        if needed - set(mine):
            continue
        timed = [
            {**row, "seconds": sum(n * mine[k + 1] for k, n in enumerate(row["evaluations"]) if n) / 1000}
            for row in rows
        ]
        alone = rivals_of(timed, ALONE_FITTED, MORE_RIVALS)
        found[str(batch)] = compared(timed, alone, SEVERAL_FITTED, unit="seconds")
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
                        0.02,
                        "not reached",
                        rotation=90,
                        ha="center",
                        color=f"C{number}",
                        size=9,
                        transform=axis.get_xaxis_transform(),
                    )
                    continue
                # The rival's error may not be reached on every batch.
                ends = [row["gain"] - (row["least"] or 0), (row["most"] or row["gain"]) - row["gain"]]
                bars = np.abs(np.array(ends)).reshape(2, 1)
                style = {"marker": marker, "color": f"C{number}", "capsize": 3, "label": label}
                axis.errorbar([place + shift], [row["gain"]], bars, linestyle="none", **style)
                label = None
        axis.axhline(1, color="0.6", linewidth=0.8)
        axis.set_xticks(
            range(len(ladders)),
            [f"{name}\n{mflops:.0f} MFLOP".replace(", ", ",\n") for mflops, name in ladders],
        )
        axis.set(
            xlim=(-0.5, len(ladders) - 0.5),
            yscale="log",
            title=f"the finest alone with {rival} evaluations",
        )
        axis.yaxis.set_major_locator(FixedLocator([1, 2, 3, 5, 10, 20]))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3, axis="y")
        if axis.get_legend_handles_labels()[0]:
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
        found = cases(parser.parse_args().size)
        times = json.loads((RESULTS / "gpu.json").read_text())
    except FileNotFoundError as missing:
        sys.exit(f"{missing.filename} is missing: run its study first, see benchmarks/README.md.")
    rows = [row for case in found for row in gains(case)]
    print(report(rows))
    seconds = in_seconds(found[0])
    print(f"\nin seconds:\n{report(seconds)}")
    accelerator = on_an_accelerator(found[-1], times["rows"])
    for batch, table in accelerator.items():
        print(f"\n{times['provenance']['device']}, batches of {batch}:\n{comparison(table)}")
    save_figure(draw(rows), RESULTS / "trend.png")
    write_table("trend", rows)
    print("written:", write_results("trend", {"rows": rows, "seconds": seconds, "accelerator": accelerator}))


if __name__ == "__main__":
    main()
