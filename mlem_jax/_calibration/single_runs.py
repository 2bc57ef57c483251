"""Runs of each level alone on the pilots, with several numbers of steps."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._solver import AbstractMethod
from .kept_parts import KeptParts
from .pilots import (
    differences,
    PilotInputs,
    Pilots,
    ReportProgress,
    rms_distance,
    root_mean,
    segmented_ends,
    SingleLevelTerms,
    squared_distances,
)

# Strides in the finest grid. The first three are needed for the reference; the longer ones are used if they divide the
# grid and leave at least eight steps, about the fewest with which samplers of diffusion models are used.
_STRIDES, _LONGER_STRIDES, _FEWEST_STEPS = (1, 2, 4), (8, 16, 32), 8
# A method of order q converges if halving the step divides differences by at least 0.8 * 2**q. For the strong order 1/2
# of an SDE with multiplicative noise the ratio is 1.41, below 0.8 * 2 = 1.6.
_CONVERGING = 0.8
_SMALLEST_SQUARE = 1e-300


class SingleRuns(NamedTuple):
    """The results of the runs.

    - `steps`: numbers of steps.
    - `error`, `uncertainty`: the error of each level against the reference, and its relative standard error.
    - `finest_ends`: the finest level's end states by stride, for each batch.
    - `reference`: the reference end states, for each batch.
    - `start_share`: see [`mlem_jax.Measurements`][].
    """

    steps: Int[np.ndarray, " counts"]
    error: Float[np.ndarray, "levels counts"]
    uncertainty: Float[np.ndarray, "levels counts"]
    finest_ends: dict[int, list[PyTree]]
    reference: list[PyTree]
    start_share: float


def strides(total: int) -> list[int]:
    """The strides in the finest grid with which single levels are run, shortest first."""
    return [*_STRIDES, *(m for m in _LONGER_STRIDES if total % m == 0 and total // m >= _FEWEST_STEPS)]


def run_single_levels(
    pilots: Pilots, method: AbstractMethod, kept: KeptParts, report_progress: ReportProgress
) -> SingleRuns:
    """Solves all pilots with each level alone and with each stride."""
    total, num_levels = len(pilots.ts) - 1, len(pilots.term.levels)
    every = strides(total)
    solver = method.single_level_solver()
    ends: dict[tuple[int, int], list[PyTree]] = {}

    def run(level: int, stride: int, ys: PyTree, inputs: PilotInputs) -> list[Array]:
        alone = SingleLevelTerms(pilots.make_terms, pilots.place, level)
        segment, ts = total // every[-1], pilots.ts[::stride]
        found = segmented_ends(method, lambda part: solver, alone, ts, segment, ys, pilots.args, inputs)
        return jtu.tree_leaves(found)

    for stride in every:
        for level in range(num_levels):
            ends[level, stride] = []
            for i, (ys, inputs) in enumerate(pilots.batches):
                compute = functools.partial(run, level, stride, ys, inputs)
                leaves = kept.arrays(f"level-{level + 1}-{stride}-{i + 1}", compute)
                found = jtu.tree_unflatten(jtu.tree_structure(ys), map(jnp.asarray, leaves))
                ends[level, stride].append(found)
                report_progress("each level alone", 1)
    finest_ends = {stride: ends[num_levels - 1, stride] for stride in every}
    reference, left = _reference(finest_ends, method.order)
    rows = [
        [root_mean(squared_distances(ends[k, m], reference) + left**2) for m in reversed(every)]
        for k in range(num_levels)
    ]
    errors, uncertainties = np.moveaxis(np.array(rows), 2, 0)
    steps = np.array([total // m for m in reversed(every)])
    share = _share_left([ys for ys, _ in pilots.batches], reference)
    return SingleRuns(steps, errors, uncertainties, finest_ends, reference, share)


def _share_left(starts: list[PyTree], ends: list[PyTree]) -> float:
    """The slope of a regression of end states on initial states through zero, over all pilots and components."""
    origin = [jtu.tree_map(jnp.zeros_like, ys) for ys in starts]
    start, end = differences(starts, origin), differences(ends, origin)
    return float(np.real(np.vdot(start, end)) / max(np.sum(np.abs(start) ** 2), _SMALLEST_SQUARE))


def _reference(finest_ends: dict[int, list[PyTree]], order: int) -> tuple[list[PyTree], float]:
    """An estimate of the exact solution of the finest level, and the RMS error of the estimate.

    If the method converges at its order (halving the step divides differences by `2**order`), the estimate is a
    Richardson extrapolation, whose error is neglected. Otherwise it is the run with all steps. Its error is about its
    distance to the run with half the steps, if errors decrease as the root of the step and are uncorrelated between
    step sizes.
    """
    fine, half, quarter = (finest_ends[stride] for stride in _STRIDES)
    last = rms_distance(half, fine)
    gain = 2**order
    if rms_distance(quarter, half) < _CONVERGING * gain * last:
        return fine, last
    return [
        jtu.tree_map(lambda a, b: a + (a - b) / (gain - 1), f, h) for f, h in zip(fine, half, strict=True)
    ], 0.0
