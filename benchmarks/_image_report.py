"""The results of study 2: measured gamma, costs to reach the errors of Euler, and comparison with the targets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from _curves import costs_to_reach, markdown, Row, summary
from _image_methods import ALL_OURS, DDIM, SINGLE

import mlem_jax as ml
from mlem_jax._calibration import gamma_lines, regression


def measured_gamma(calibration: ml.Calibration) -> dict[str, Any]:
    """Gamma as the calibration fits it, with its standard error, and as text."""
    fit, words = regression(calibration.measurements), " ".join(gamma_lines(calibration.measurements))
    if fit is None:
        return {"gamma": None, "words": words}
    return {"gamma": fit.gamma, "standard_error": fit.standard_error, "levels": fit.levels, "words": words}


def reach_table(rows: list[Row], targets: Sequence[int]) -> list[Row]:
    """For each target and method the cost and the seconds at Euler's error, and Euler's over them."""
    table = []
    for steps in targets:
        (baseline,) = (r for r in rows if r["method"] == DDIM and r["steps"] == steps)
        errors = baseline["batch_error"]
        evaluations, seconds = costs_to_reach(rows, errors), costs_to_reach(rows, errors, "seconds")
        single = np.min([evaluations[name] for name in _single(rows) if name in evaluations], axis=0)
        for name in evaluations:
            cost, took = summary(evaluations[name]), summary(seconds[name])
            table.append(
                {
                    "error_of_euler_steps": steps,
                    "error": baseline["error"],
                    "method": name,
                    "evaluations": cost["median"],
                    "seconds": took["median"],
                    "cheaper_than_euler": summary(steps / evaluations[name])["median"],
                    "cheaper_than_euler_least": summary(steps / evaluations[name])["min"],
                    "cheaper_than_euler_most": summary(steps / evaluations[name])["max"],
                    "faster_than_euler": summary(baseline["seconds"] / seconds[name])["median"],
                    "cheaper_than_best_single": summary(single / evaluations[name])["median"],
                }
            )
    return table


def _single(rows: list[Row]) -> tuple[str, ...]:
    """The samplers on the finest level alone."""
    return SINGLE[any(row["method"] == "ShARK" for row in rows)]


def report(found: dict[str, Any], targets: Sequence[int]) -> str:
    """The tables as text."""

    def shown(value: float | None, digits: int = 1) -> str:
        return "-" if not value else f"{value:.{digits}f}"

    lines = [f"{found['problem']}: {found['gamma']['words']}"]
    for steps in targets:
        mine = [row for row in found["reach"] if row["error_of_euler_steps"] == steps]
        mine.sort(key=lambda row: row["evaluations"] or np.inf)
        lines.append(f"\nCost to reach the error of Euler with {steps} steps, {mine[0]['error']:.4f}:\n")
        lines.append(
            markdown(
                ["method", "evaluations", "seconds", "Euler / this", "range", "in seconds"],
                [
                    [
                        row["method"],
                        shown(row["evaluations"]),
                        shown(row["seconds"], 2),
                        shown(row["cheaper_than_euler"]),
                        f"{shown(row['cheaper_than_euler_least'])} to {shown(row['cheaper_than_euler_most'])}",
                        shown(row["faster_than_euler"]),
                    ]
                    for row in mine
                ],
            )
        )
    for row in found.get("distribution", []):
        lines.append(
            f"{row['method']:36s} sliced Wasserstein {row['sliced_wasserstein']:.4f}  kernel "
            f"{row['kernel_discrepancy']:.5f}  Frechet (own features) {row['frechet']:.3f}"
        )
    return "\n".join(lines)


def bars(found: dict[str, Any], steps: int = 100) -> list[str]:
    """The ratios that the project aimed at, and whether the best of the library's methods reaches them."""
    ours = [
        row for row in found["reach"] if row["method"] in ALL_OURS and row["error_of_euler_steps"] == steps
    ]
    sde = found["problem"] == "reverse SDE"
    claims = [("cheaper_than_euler", 4.0 if sde else 5.0)]
    if not sde:
        claims += [("faster_than_euler", 3.5), ("cheaper_than_best_single", 1.2)]
    lines = []
    for claim, bar in claims:
        values = [row[claim] for row in ours if row[claim] is not None]
        best = max(values, default=0.0)
        verdict = "holds" if best >= bar else "does not hold"
        lines.append(
            f"{found['problem']}, error of Euler with {steps} steps: {claim} {best:.2f}, bar {bar}: {verdict}"
        )
    return lines
