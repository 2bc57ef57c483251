"""Runs of the methods of `_methods.py`: tuning on one batch, errors on fresh batches, seconds."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from _harness import interleaved_seconds
from _methods import Batch, Method

# A setting is kept in tuning if its error is below this fraction of all cheaper ones'. A smaller gain is within the
# noise of one batch, and fewer settings have to be measured.
SMALLER = 0.95
# Compiled programs are dropped after this number of settings in tuning: of several hundred the memory maps run out
# (`_harness.py`).
TOGETHER = 32


class Found(NamedTuple):
    """One run: end states, error, cost."""

    end: np.ndarray
    error: float
    cost: float


def run(method: Method, batch: Batch, seed: int = 0) -> Found:
    """Runs a method once."""
    prepared = method.prepare(batch, seed)
    end, cost = prepared.read(prepared.call())
    end = np.asarray(end)
    with np.errstate(over="ignore", invalid="ignore"):
        error = float(np.sqrt(np.mean((end - batch.reference).astype(float) ** 2)))
    return Found(end, error if np.isfinite(error) else np.inf, float(cost))


def tune(
    methods: Sequence[Method], batch: Batch, *, coin_seeds: int
) -> tuple[list[Method], dict[str, float]]:
    """For each method the settings with a smaller error on this batch than all cheaper ones, cheapest first; and the
    seconds of the method's first call, which are mostly compilation."""
    found: dict[str, list[tuple[float, float, Method]]] = {}
    first_call: dict[str, float] = {}
    for number, method in enumerate(methods, 1):
        if number % TOGETHER == 0:
            jax.clear_caches()
        start = time.perf_counter()
        runs = [run(method, batch, 1000)]
        first_call.setdefault(method.name, time.perf_counter() - start)
        runs += [run(method, batch, 1000 + seed) for seed in range(1, coin_seeds if method.random else 1)]
        cost = float(np.mean([r.cost for r in runs]))
        error = float(np.sqrt(np.mean([r.error**2 for r in runs])))
        found.setdefault(method.name, []).append((cost, error, method))
    jax.clear_caches()
    kept = []
    for settings in found.values():
        best = np.inf
        for _, error, method in sorted(settings, key=lambda entry: entry[:2]):
            if error < SMALLER * best:
                best = error
                kept.append(method)
    return kept, first_call


def measure(methods: Sequence[Method], batches: Sequence[Batch], *, coin_seeds: int) -> list[dict[str, Any]]:
    """One row per method, with the mean cost and the root mean square error over coin seeds for each batch, and the
    standard deviation of single runs."""
    rows = []
    for method in methods:
        seeds = range(coin_seeds if method.random else 1)
        runs = [[run(method, batch, seed) for seed in seeds] for batch in batches]
        errors = np.array([[r.error for r in one] for one in runs])
        rows.append(
            {
                "method": method.name,
                "setting": method.setting,
                "steps": method.steps,
                "grid": method.grid,
                "multilevel": method.multilevel,
                "cost": float(np.mean([[r.cost for r in one] for one in runs])),
                "error": float(np.sqrt(np.mean(errors**2))),
                "error_sd": float(np.std(errors, ddof=1)) if errors.size > 1 else 0.0,
                "batch_cost": [float(np.mean([r.cost for r in one])) for one in runs],
                "batch_error": np.sqrt(np.mean(errors**2, axis=1)).tolist(),
                "runs": errors.size,
            }
        )
    return rows


def add_seconds(rows: list[dict[str, Any]], methods: Sequence[Method], batch: Batch, *, repeats: int) -> None:
    """Adds to each row the median seconds of a run on one batch, without compilation; the runs are interleaved."""
    calls = [method.prepare(batch, 0).call for method in methods]
    for row, seconds in zip(rows, interleaved_seconds(calls, repeats=repeats), strict=True):
        row["seconds"] = float(np.median(seconds))
