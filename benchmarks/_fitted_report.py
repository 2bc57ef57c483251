"""Tables of study 8: the cost of each method at a rival's error, and predicted and measured errors of fitted steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from _curves import cost_at, markdown, Row, summary

# Predictions within this fraction of the measured error are counted.
CLOSE = 0.15


def compared(rows: Sequence[Row], rivals: Sequence[Row], method: str) -> list[dict[str, Any]]:
    """The cost of a method at the geometric mean error of each rival, for each batch."""
    mine, table = [row for row in rows if row["method"] == method], []
    for rival in rivals:
        needed = []
        for i, error in enumerate(rival["batch_error"]):
            needed.append(
                cost_at(
                    [row["batch_cost"][i] for row in mine], [row["batch_error"][i] for row in mine], error
                )
            )
        table.append(
            {
                "rival": f"{rival['method']}, {rival['setting']}",
                "rival_cost": rival["cost"],
                "error": rival["error"],
                "method": method,
                "cost": summary(np.array(needed)),
                "times_fewer": summary(rival["cost"] / np.array(needed)),
            }
        )
    return table


def rivals_of(rows: Sequence[Row], name: str, counts: Sequence[int]) -> list[Row]:
    """The rows of a method with these numbers of steps, with the smallest error for each number."""
    found = []
    for count in counts:
        mine = [row for row in rows if row["method"] == name and row["steps"] == count]
        if mine:
            found.append(min(mine, key=lambda row: row["error"]))
    return found


def report(table: Sequence[dict[str, Any]]) -> str:
    """The comparison as a table."""

    def shown(found: dict[str, float | None]) -> str:
        middle, least, most = (found[name] for name in ("median", "min", "max"))
        if middle is None:
            return "not reached"
        return f"{middle:.2f} ({0 if least is None else least:.2f} to {'never' if most is None else f'{most:.2f}'})"

    lines = [
        [row["rival"], f"{row['error']:.4f}", row["method"], shown(row["cost"]), shown(row["times_fewer"])]
        for row in table
    ]
    return markdown(["at the error of", "error", "method", "evaluations", "times fewer"], lines)


def predictions(rows: Sequence[Row]) -> str:
    """Predicted and measured geometric mean errors of fitted steps."""
    mine = [row for row in rows if row["predicted"] is not None]
    lines, close = [], 0
    for row in sorted(mine, key=lambda row: row["cost"]):
        ratio = row["error"] / row["predicted"]
        close += abs(ratio - 1) <= CLOSE
        lines.append(
            [
                row["method"],
                f"{row['cost']:.2f}",
                f"{row['predicted']:.4f}",
                f"{row['error']:.4f}",
                f"{ratio:.2f}",
            ]
        )
    table = markdown(["method", "evaluations", "predicted", "measured", "ratio"], lines)
    return f"{table}\n{close} of {len(mine)} within {100 * CLOSE:.0f} per cent."
