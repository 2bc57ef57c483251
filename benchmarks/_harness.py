"""Shared by all benchmarks: timing with compilation apart, and results files that say where they come
from."""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax

RESULTS = Path(__file__).parent / "results"


def interleaved_seconds(calls: Sequence[Callable[[], Any]], *, repeats: int) -> list[list[float]]:
    """Seconds of each call, `repeats` times, taken in turn so that a busy machine hits all alike.

    Each call is made once before, which compiles it.
    """
    for call in calls:
        jax.block_until_ready(call())
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[i].append(time.perf_counter() - start)
    return seconds


_SIZES = {
    "smoke": "tiny, to see that it runs; writes nothing",
    "quick": "for two cores; benchmarks/README.md says how long it takes",
    "full": "more settings, noise and seeds, for a larger machine",
}


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """`--smoke`, `--quick` or `--full`, one of which has to be given, as `size`."""
    group = parser.add_mutually_exclusive_group(required=True)
    for name, words in _SIZES.items():
        group.add_argument(f"--{name}", dest="size", action="store_const", const=name, help=words)


def median_ratio(above: list[float], below: list[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def provenance() -> dict[str, Any]:
    """Machine, versions, commit (`-dirty` where more than results differs from it) and command."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":(top,exclude)benchmarks/results")
    return {
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "commit": _git("describe", "--always") + ("-dirty" if changed else ""),
        "cpu_cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "diffrax": diffrax.__version__,
        "equinox": eqx.__version__,
    }


def write_results(name: str, results: dict[str, Any]) -> Path:
    """Writes `results/NAME.json`, replacing an older one in one step."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"provenance": provenance(), **results}, indent=2) + "\n")
    os.replace(temporary, path)
    return path


def write_table(name: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes the rows' numbers and words (no lists) to `results/NAME.csv`; the JSON file of that name says where they
    come from."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    columns = list(
        dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, list))
    )
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path
