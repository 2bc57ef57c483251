"""Timing without compilation, and result files with their provenance, for all benchmarks."""

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
# Compiled programs in one part each instead of many. Each part has memory maps of its own, of which Linux allows 65,530
# to a process; a study of more than a hundred methods ends otherwise in a segmentation fault.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_parallel_codegen_split_count=1".strip()
)


def interleaved_seconds(calls: Sequence[Callable[[], Any]], *, repeats: int) -> list[list[float]]:
    """The seconds of each call in `repeats` rounds. Calls are interleaved, so that other load on the machine affects
    all of them alike, and each is compiled by one call before.
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
    "smoke": "tiny, as a test; writes nothing",
    "quick": "for two cores; benchmarks/README.md has the running times",
    "full": "more settings, noise and seeds, for a larger machine",
}


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Adds `--smoke`, `--quick` and `--full`, one of which is required, as `size`."""
    group = parser.add_mutually_exclusive_group(required=True)
    for name, words in _SIZES.items():
        group.add_argument(f"--{name}", dest="size", action="store_const", const=name, help=words)


def median_ratio(above: list[float], below: list[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def provenance() -> dict[str, Any]:
    """Machine, versions, commit (with `-dirty` if files other than results differ from it) and command."""
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
    """Writes `results/NAME.json` atomically."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"provenance": provenance(), **results}, indent=2) + "\n")
    os.replace(temporary, path)
    return path


def write_table(name: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes the entries of the rows that are not lists to `results/NAME.csv`. The JSON file of that name has the
    provenance."""
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
