"""Checks `_rivals.DPMSolver` (DPM-Solver++(2M) and UniPC) against diffusers' schedulers on an exact Gaussian target.

diffusers is not a dependency; it is needed once, in an environment of its own:

    python3 -m venv /tmp/dvenv && /tmp/dvenv/bin/pip install torch diffusers
    python benchmarks/check_dpm_solver.py /tmp/dvenv/bin/python

Data are Gaussian with standard deviation c in each of four coordinates, so the noise prediction is exact,
`s y / (c**2 + s**2)`. Both solvers take the same steps (Karras' and log-uniform grids, 5 to 40) from the same
states; the states at the end of every run must agree to single precision, in which diffusers computes.
Writes `benchmarks/results/check_dpm_solver.json`.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

import numpy as np

SCALES = (0.1, 0.5, 1.0, 2.0)
STEPS = (5, 10, 20, 40)


def in_diffusers(grid: list[float], y: list[float], corrector: bool) -> tuple[list[float], str]:
    """The end state by diffusers' scheduler, and its version; runs in the other environment."""
    import diffusers  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    if corrector:
        scheduler = diffusers.UniPCMultistepScheduler(
            solver_order=2, solver_type="bh2", prediction_type="epsilon", lower_order_final=False
        )
    else:
        scheduler = diffusers.DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver++",
            solver_order=2,
            prediction_type="epsilon",
            lower_order_final=False,
            final_sigmas_type="sigma_min",
        )
    steps = len(grid) - 1
    scheduler.set_timesteps(steps)
    # The same times as ours: its own are those of a training schedule.
    scheduler.sigmas = torch.tensor(grid, dtype=torch.float64)
    scheduler.timesteps = torch.arange(steps)
    variance = torch.tensor(SCALES) ** 2
    # One image with one channel of four pixels.
    x = torch.tensor(y)[None, None] / (1 + grid[0] ** 2) ** 0.5
    for n in range(steps):
        s = grid[n]
        eps = s * x * (1 + s**2) ** 0.5 / (variance + s**2)
        x = scheduler.step(eps, scheduler.timesteps[n], x).prev_sample
    return (x[0, 0] * (1 + grid[-1] ** 2) ** 0.5).tolist(), diffusers.__version__


def compare(python: str) -> dict[str, Any]:
    """Largest relative difference over all runs, for each solver."""
    import jax.numpy as jnp
    from _rivals import DPMSolver, march, Plain

    from mlem_jax.diffusion import VariancePreserving

    scales = jnp.asarray(SCALES)
    solvers = {
        name: DPMSolver(Plain(lambda s, y, args: s * y / (scales**2 + s**2), 1.0), corrector)
        for name, corrector in (("DPM-Solver++(2M)", False), ("UniPC, order 2", True))
    }
    process = VariancePreserving()
    start = jnp.array([80.0, -40.0, 100.0, -60.0])
    rows, version = [], ""
    for name, solver in solvers.items():
        for spacing in ("karras", "log"):
            for steps in STEPS:
                grid = np.asarray(process.grid(steps, spacing=spacing))
                ours = np.asarray(march(solver, grid, start)[0]())
                task = json.dumps([grid.tolist(), start.tolist(), solver.corrector])
                found = subprocess.run(
                    [python, __file__, "--child"], input=task, capture_output=True, text=True, check=True
                )
                theirs, version = json.loads(found.stdout.splitlines()[-1])
                exact = start * jnp.sqrt((scales**2 + grid[-1] ** 2) / (scales**2 + grid[0] ** 2))
                rows.append(
                    {
                        "solver": name,
                        "grid": spacing,
                        "steps": steps,
                        "difference": float(np.max(np.abs(ours / np.asarray(theirs) - 1))),
                        "relative_error": float(np.max(np.abs(ours / exact - 1))),
                    }
                )
                print(rows[-1], flush=True)
    return {"diffusers": version, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("python", nargs="?", help="the interpreter of an environment with diffusers")
    parser.add_argument("--child", action="store_true", help="for the script itself")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(in_diffusers(*json.load(sys.stdin))))
        return
    if arguments.python is None:
        parser.error("name the interpreter of an environment with diffusers; see --help")
    from _harness import write_results

    results = compare(arguments.python)
    worst = max(row["difference"] for row in results["rows"])
    print(f"largest relative difference to diffusers {results['diffusers']}: {worst:.1e}")
    if worst > 1e-4:
        raise SystemExit("The implementations differ.")
    print("written:", write_results("check_dpm_solver", results))


if __name__ == "__main__":
    main()
