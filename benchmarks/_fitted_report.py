"""Tables of study 8: the cost of each method at a rival's error, and predicted and measured errors of fitted steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from _curves import cost_at, markdown, Row, summary

# Predictions within this fraction of the measured error are counted.
CLOSE = 0.15


def compared(
    rows: Sequence[Row], rivals: Sequence[Row], method: str, *, unit: str = "batch_cost"
) -> list[dict[str, Any]]:
    """The cost of a method at the geometric mean error of each rival, for each batch. `unit` is `"batch_cost"`
    (finest-level evaluations) or `"seconds"`, which are one number for all batches."""
    mine, table = [row for row in rows if row["method"] == method], []

    def cost(row: Row, batch: int) -> float:
        return row[unit][batch] if isinstance(row[unit], list) else row[unit]

    for rival in rivals:
        own = np.array([cost(rival, i) for i in range(len(rival["batch_error"]))])
        needed = np.array(
            [
                cost_at([cost(row, i) for row in mine], [row["batch_error"][i] for row in mine], error)
                for i, error in enumerate(rival["batch_error"])
            ]
        )
        table.append(
            {
                "rival": f"{rival['method']}, {rival['setting']}",
                "rival_cost": float(np.mean(own)),
                "error": rival["error"],
                "method": method,
                "unit": "seconds" if unit == "seconds" else "finest evaluations",
                "cost": summary(needed),
                "times_fewer": summary(own / needed),
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

    lines = []
    for row in table:
        fewer = "" if row["cost"]["median"] is None else shown(row["times_fewer"])
        lines.append([row["rival"], f"{row['error']:.4f}", row["method"], shown(row["cost"]), fewer])
    unit = table[0]["unit"] if table else "finest evaluations"
    return markdown(["at the error of", "error", "method", unit, "times fewer"], lines)


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
