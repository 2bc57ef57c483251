"""Sizes of the levels that `distil` makes: by FLOPs, or by the seconds that they take here, which the folder of a run
remembers."""

import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..._io import write_text_safely
from .._ladder import AbstractLadder, count_flops, ladder_of_flops

FILE = "sizes.json"
# As for the pilots of a calibration.
_BATCH = 32
# The median ignores calls that were interrupted.
_TIMED_CALLS = 5
# Widths are integers, and times vary from call to call.
_NEAR, _MOST_TRIES = 0.1, 6
# Seconds grow more slowly than FLOPs, so that one try changes the size by a limited factor.
_LARGEST_CHANGE = 8.0


def find_sizes(
    whole: AbstractLadder,
    mflops: Sequence[float | int] | None,
    seconds: Sequence[float | int] | None,
    out: Path,
) -> tuple[dict[str, Any] | None, Sequence[float | int]]:
    """What was measured to find levels of given seconds, if that is asked for, and the levels' million FLOPs. Raises
    `ValueError` unless one of both is given, and what `timed_sizes` raises."""
    if mflops is not None and seconds is None:
        return None, mflops
    if seconds is not None and mflops is None:
        timed = timed_sizes(whole, seconds, out)
        return timed, timed["mflops"]
    raise ValueError(
        "distil needs the sizes of the levels; write mflops=[1, 6], say, or seconds=[...]; not both."
    )


def timed_sizes(whole: AbstractLadder, seconds: Sequence[float | int], out: Path) -> dict[str, Any]:
    """Million FLOPs (`mflops`) and measured seconds per image (`measured`) of levels that take about these `seconds`,
    and those of the `network`, the finest level of `whole`; from the folder of a run that was begun.

    Raises `ValueError` for seconds that are not positive and increasing, as many as the network's or more, or fewer
    than the smallest level takes; and for a folder of a run with other seconds."""
    wanted = [float(x) for x in seconds]
    if (out / FILE).is_file():
        there = json.loads((out / FILE).read_text())
        if there["seconds"] != wanted:
            raise ValueError(
                f"{out} was begun for levels of {there['seconds']} seconds, and now seconds={wanted} were given. "
                "Choose another folder."
            )
        return there
    if not wanted or not all(0 < a < b for a, b in itertools.pairwise([*wanted, np.inf])):
        raise ValueError(f"seconds={wanted}; increasing positive numbers are expected, such as 0.001,0.005.")
    height, width, channels = whole.shape
    predictor, labels = whole.predictors()[-1], whole.labels
    label = None if labels is None else jnp.asarray(labels[0])
    own = seconds_per_image(lambda x: predictor(x, jnp.asarray(1.0), label), whole.shape)
    if wanted[-1] >= own:
        raise ValueError(
            f"seconds={wanted}: the network itself takes {own:.3g} seconds for an image, in batches of {_BATCH}; "
            f"levels of at most {own / 4:.2g} are expected."
        )

    def measured(mflops: float) -> tuple[float, float]:
        """The FLOPs and seconds of the level that comes nearest to some FLOPs."""
        config = ladder_of_flops((height, width, channels), [mflops])
        (network,) = config.networks()
        return count_flops(network) / 1e6, seconds_per_image(lambda x: network(x, jnp.zeros(())), whole.shape)

    start = whole.level_costs()[-1] / 1e6 / own
    found = [_nearest(measured, target, start * target) for target in wanted]
    return {
        "seconds": wanted,
        "mflops": [mflops for mflops, _ in found],
        "measured": [took for _, took in found],
        "network": own,
        "device": jax.devices()[0].device_kind,
    }


def remember_sizes(out: Path, sizes: dict[str, Any]) -> None:
    """Writes them into the folder of a run, so that it is continued with the same levels."""
    write_text_safely(out / FILE, json.dumps(sizes, indent=2) + "\n")


def seconds_per_image(call: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]) -> float:
    """The median wall-clock seconds of a function of one image, for each image of a batch of 32."""
    compiled = eqx.filter_jit(jax.vmap(call))
    images, took = jnp.ones((_BATCH, *shape)), []
    jax.block_until_ready(compiled(images))
    for _ in range(_TIMED_CALLS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(images))
        took.append(time.perf_counter() - start)
    return float(np.median(took)) / _BATCH


def _nearest(
    measured: Callable[[float], tuple[float, float]], target: float, guess: float
) -> tuple[float, float]:
    """FLOPs and seconds of the level whose seconds come nearest to `target`; `guess` are FLOPs to begin with."""
    tried: dict[float, float] = {}
    for _ in range(_MOST_TRIES):
        try:
            mflops, took = measured(guess)
        except ValueError as error:
            best = f" The smallest one tried takes {min(tried.values()):.2g}." if tried else ""
            raise ValueError(f"No level takes {target:g} seconds for an image here: {error}{best}") from error
        if mflops in tried:
            break
        tried[mflops] = took
        if abs(took / target - 1) < _NEAR:
            break
        guess = mflops * min(max(target / took, 1 / _LARGEST_CHANGE), _LARGEST_CHANGE)
    return min(tried.items(), key=lambda one: abs(np.log(one[1] / target)))
