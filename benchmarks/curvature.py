"""The limit of plans with few evaluations: the part of the finest drift's second difference that smaller networks
share.

Run `python benchmarks/curvature.py` (seconds; it reads the shipped calibration of the probability flow). Prints a table
and writes `benchmarks/results/curvature.json`.

The study takes the effect of the drift per unit of log s on the end state (`J f` of docs/theory.md) along the pilots'
trajectories, and its second differences over a lag in log s: root mean squares over pilots, random directions and
times, in units of a pixel. The error of a second-order method on the finest network alone is proportional to the whole
second difference, that of ML-EM's corrections to level k to the part that level k does not share. A level is useful
only if that part is much smaller than the whole.
"""

import argparse
from typing import Any

import numpy as np
from _curves import markdown
from _harness import write_results

from mlem_jax import AdamsBashforth, Calibration
from mlem_jax.diffusion import load_ladder

LAGS = (1.5, 1.0, 0.7, 0.5, 0.35)
POINTS = 400


def second_differences(calibration: Calibration) -> list[dict[str, Any]]:
    """A row for each lag: second differences of the finest drift, and of its differences to all other levels."""
    measured = calibration.measurements
    times = measured.ts[:-1]
    # np.interp needs increasing abscissae, and the times decrease.
    logs = np.log(times)[::-1]
    effects = (times[:, None, None, None] * measured.effects)[::-1]
    names = ["finest", *(f"finest - level {k}" for k in range(1, calibration.num_levels))]
    rows = []
    for lag in LAGS:
        middle = np.linspace(logs[0] + lag, logs[-1] - lag, POINTS)
        row: dict[str, Any] = {"lag of log s": lag}
        for first, name in enumerate(names):
            # The increments of all finer levels add up to the difference between the finest level and this one.
            values = effects[:, first:].sum(1).reshape(len(logs), -1)
            before, at, after = (
                np.stack([np.interp(middle + shift, logs, column) for column in values.T])
                for shift in (-lag, 0.0, lag)
            )
            row[name] = float(np.sqrt(np.mean((after - 2 * at + before) ** 2)))
        rows.append(row)
    return rows


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    rows = second_differences(load_ladder().calibration(method=AdamsBashforth("log")))
    columns = list(rows[0])
    print(markdown(columns, [[f"{row[c]:.3g}" for c in columns] for row in rows]))
    print("written:", write_results("curvature", {"rows": rows}))


if __name__ == "__main__":
    main()
