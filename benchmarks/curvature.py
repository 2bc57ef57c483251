"""What limits plans with few evaluations: how much of the finest drift's second difference smaller networks share.

Run `python benchmarks/curvature.py` (seconds; it reads the shipped calibration of the probability flow). Prints a table
and writes `benchmarks/results/curvature.json`.

The drift per unit of log s, pushed to the end state by the flow (J f of theory.md), is followed along the pilots'
trajectories, and its second differences over plus and minus a lag of log s are taken: root mean square over pilots,
random directions and times, in units of a pixel. A second-order method on the finest network alone sees the whole
of it, the corrections of ML-EM to level k the part that level k does not share. A part is worth a level only where the
second difference of the rest is much smaller.
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


def bends(calibration: Calibration) -> list[dict[str, Any]]:
    """A row for each lag: second differences of the finest drift, and of its distance to every other level."""
    measured = calibration.measurements
    times = measured.ts[:-1]
    # Time runs from large s to small, np.interp's abscissae upwards.
    clock = np.log(times)[::-1]
    kicks = (times[:, None, None, None] * measured.effects)[::-1]
    names = ["finest", *(f"finest - level {k}" for k in range(1, calibration.num_levels))]
    rows = []
    for lag in LAGS:
        middle = np.linspace(clock[0] + lag, clock[-1] - lag, POINTS)
        row: dict[str, Any] = {"lag of log s": lag}
        for first, name in enumerate(names):
            # The increments above a level add up to what the finest has and it has not.
            values = kicks[:, first:].sum(1).reshape(len(clock), -1)
            before, at, after = (
                np.stack([np.interp(middle + shift, clock, column) for column in values.T])
                for shift in (-lag, 0.0, lag)
            )
            row[name] = float(np.sqrt(np.mean((after - 2 * at + before) ** 2)))
        rows.append(row)
    return rows


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    rows = bends(load_ladder().calibration(method=AdamsBashforth("log")))
    columns = list(rows[0])
    print(markdown(columns, [[f"{row[c]:.3g}" for c in columns] for row in rows]))
    print("written:", write_results("curvature", {"rows": rows}))


if __name__ == "__main__":
    main()
