"""The tables and the figure of study 5."""

from typing import Any

from _curves import markdown
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def report(found: dict[str, Any]) -> str:
    """The tables as text."""
    header = ["", "ML-EM, ms per image", "Euler, equal evaluations", "finest evaluations", "promise kept"]
    lines = []
    for part, field in (("batch", "batch"), ("levels", "levels"), ("steps", "steps")):
        for row in found[part]:
            lines.append(
                [
                    f"{part} {row[field]}",
                    f"{1e3 * row['seconds_per_sample']:.2f}",
                    f"{1e3 * row['euler_seconds_per_sample']:.2f} ({row['euler_steps']} steps)",
                    f"{row['finest_evaluations']:.2f}",
                    f"{row['promised_over_taken']:.0%}",
                ]
            )
    tables = [markdown(header, lines)]
    lines = [
        [
            f"{row['devices']}",
            f"{1e3 * row['seconds_per_sample']:.2f}",
            f"{row['megabytes_after_import']:.0f}",
            f"{row['megabytes_at_most']:.0f}",
        ]
        for row in found["devices"]
    ]
    tables.append(markdown(["devices", "ms per image", "MB after import", "MB at most"], lines))
    lines = [
        [f"{row['batch']}", row["method"], f"{row['beside_arguments']:.1f}", f"{row['arguments']:.1f}"]
        for row in found["memory"]
    ]
    tables.append(markdown(["batch", "method", "compiled solve, MB", "of arguments, MB"], lines))
    lines = [[row["problem"], f"{row['levels']}", f"{row['seconds']:.2f}"] for row in found["compile"]]
    tables.append(markdown(["levels of", "number", "seconds to compile"], lines))
    lines = [
        [
            row["problem"],
            f"{row['library_over_scan']:.2f}",
            f"{row['microseconds_more_per_step']:.1f}",
            f"{row['relative_difference']:.1e}",
        ]
        for row in found["loop"]
    ]
    header = ["diffeqsolve against a scan by hand", "ratio", "microseconds more a step", "difference"]
    return "\n\n".join([*tables, markdown(header, lines)])


def draw_figure(found: dict[str, Any]) -> Figure:
    """Five panels, one for each axis of growth."""
    figure = Figure(figsize=(15, 3.2), layout="constrained")
    axes = figure.subplots(1, 5)
    for axis, part in zip(axes, ("batch", "levels", "steps"), strict=False):
        x = [len(row[part]) if part == "levels" else row[part] for row in found[part]]
        for key, label in (
            ("seconds_per_sample", "ML-EM"),
            ("euler_seconds_per_sample", "Euler, equal evaluations"),
        ):
            axis.plot(x, [1e3 * row[key] for row in found[part]], ".-", label=label)
        axis.set(xlabel=f"{part} of the ladder" if part == "levels" else part, ylabel="ms per image")
        axis.set_ylim(bottom=0)
    for name in dict.fromkeys(row["method"] for row in found["memory"]):
        mine = [row for row in found["memory"] if row["method"] == name]
        axes[3].loglog(
            [row["batch"] for row in mine], [row["beside_arguments"] for row in mine], ".-", label=name
        )
    axes[3].set(xlabel="batch", ylabel="MB of the compiled solve")
    for name in dict.fromkeys(row["problem"] for row in found["compile"]):
        mine = [row for row in found["compile"] if row["problem"] == name]
        axes[4].plot([row["levels"] for row in mine], [row["seconds"] for row in mine], ".-", label=name)
    axes[4].set(xlabel="levels (1: Euler)", ylabel="seconds to compile")
    axes[4].set_ylim(bottom=0)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    for axis in (axes[0], axes[2]):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
    for axis in (axes[1], axes[4]):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
