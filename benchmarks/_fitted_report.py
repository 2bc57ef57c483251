"""Tables of study 9: what each method needs for a rival's error, and whether fitted steps keep what they promise."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from _curves import cost_at, markdown, Row, summary

# A prediction is right within this fraction.
CLOSE = 0.15


def compared(rows: Sequence[Row], rivals: Sequence[Row], method: str) -> list[dict[str, Any]]:
    """For each rival's row what a method needs for the same geometric mean error, batch by batch."""
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
    """For each number of steps the row with the smallest error, whatever its grid."""
    found = []
    for count in counts:
        mine = [row for row in rows if row["method"] == name and row["setting"].startswith(f"{count} steps")]
        if mine:
            found.append(min(mine, key=lambda row: row["error"]))
    return found


def report(table: Sequence[dict[str, Any]]) -> str:
    """The comparison as a table."""

    def told(found: dict[str, float | None]) -> str:
        middle, least, most = (found[name] for name in ("median", "min", "max"))
        if middle is None:
            return "not reached"
        return f"{middle:.2f} ({0 if least is None else least:.2f} to {'never' if most is None else f'{most:.2f}'})"

    lines = [
        [row["rival"], f"{row['error']:.4f}", row["method"], told(row["cost"]), told(row["times_fewer"])]
        for row in table
    ]
    return markdown(["at the error of", "error", "method", "evaluations", "times fewer"], lines)


def predictions(rows: Sequence[Row]) -> str:
    """Predicted against measured geometric mean error of fitted steps."""
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
