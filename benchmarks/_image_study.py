"""All methods of `_image_methods.py` on one ladder, tuned on one batch and measured on fresh ones."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _image_methods import all_methods, DDIM, Effort, references
from _image_report import measured_gamma, reach_table
from _methods import Batch, draw, Method, Shared
from _runs import add_seconds, measure, tune

from mlem_jax.diffusion import Ladder


class Comparison(NamedTuple):
    """Images of a batch; fresh batches; coin seeds for tuning and for measuring; rounds of timing; step counts of Euler
    whose errors are the targets."""

    samples: int
    batches: int
    tuning_seeds: int
    coin_seeds: int
    rounds: int
    targets: tuple[int, ...]


def compare_all(
    ladder: Ladder, problem: Shared, effort: Effort, size: Comparison
) -> tuple[dict[str, Any], list[Method], Batch]:
    """The results; the methods that were kept, one for each of their rows; and the first fresh batch."""
    differences = []

    def reference(batch: Batch) -> np.ndarray:
        best, other = references(problem, batch)
        differences.append(float(jnp.sqrt(jnp.mean((best - other) ** 2))))
        return np.asarray(best)

    tuning, *fresh = (
        draw(problem, jr.key(5000 + i), size.samples, reference) for i in range(size.batches + 1)
    )
    print(f"{problem.name}: references differ by {max(differences):.4f} (RMS)", flush=True)
    methods = all_methods(ladder, problem, effort)
    kept, first_call = tune(methods, tuning, coin_seeds=size.tuning_seeds)
    print(f"{len(kept)} of {len(methods)} settings kept", flush=True)
    # The baseline is not tuned.
    kept = [m for m in kept if m.name != DDIM] + [m for m in methods if m.name == DDIM]
    rows = measure(kept, fresh, coin_seeds=size.coin_seeds)
    add_seconds(rows, kept, fresh[0], repeats=size.rounds)
    for row in rows:
        row["problem"] = problem.name
        print(
            f"{row['method']:40s} cost {row['cost']:6.1f}  {row['seconds']:6.2f} s  error {row['error']:.4f} ± "
            f"{row['error_sd']:.4f}  ({row['setting']})",
            flush=True,
        )
    found = {
        "problem": problem.name,
        "references_differ": max(differences),
        "settings_tried": len(methods),
        "first_call_seconds": first_call,
        "gamma": measured_gamma(ladder.calibration(sde=problem.diffusion is not None)),
        "rows": rows,
        "reach": reach_table(rows, size.targets),
    }
    return found, kept, fresh[0]
