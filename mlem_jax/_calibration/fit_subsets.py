"""The candidates among which held-out pilots choose: the drifts and increments that a step or a move may use, each with
its classical coefficient."""

import numpy as np
from jaxtyping import Float

from .._custom_types import TimeVariable
from .._solver import adams_bashforth_weights
from .fit_step import Subset


def classical_subset(subsets: list[Subset], drifts: int) -> Subset:
    """The subset with two drifts and the fewest increments. In the first step there is only one drift."""
    return next(subset for subset in subsets if sum(i < drifts for i in subset[0]) == min(2, drifts))


def move_subsets(counts: list[int]) -> list[Subset]:
    """The subsets for the move of a state, if `counts` increments of each level are known: no increments, the newest
    ones, or older ones too. Classical steps do not move the state."""
    found = []
    for used in range(0, max(counts) + 1):
        chosen, start = [], 0
        for count in counts:
            chosen += range(start, start + min(used, count))
            start += count
        found.append((tuple(chosen), np.zeros(len(chosen))))
    return found


def step_subsets(
    times: Float[np.ndarray, " times"],
    counts: list[int],
    weights: Float[np.ndarray, " most"],
    time_variable: TimeVariable,
) -> list[Subset]:
    """The subsets for a step: some drifts, and some increments of each higher level. The classical coefficients are
    those of Adams-Bashforth for the drifts; the newest increment of the finest level is held over the step.

    - `times`: of the known drifts, oldest first, and the end of the step.
    - `counts`: the number of known increments of each higher level.
    - `weights`: the classical coefficients of all drifts.
    """
    found = []
    known, most, length = len(times) - 1, max(counts, default=0), float(times[-1] - times[-2])
    # Numbers of drifts with all increments, then numbers of increments with all drifts.
    numbers = [(drifts, most) for drifts in range(1, known)] + [(known, used) for used in range(1, most)]
    for drifts, used in [*numbers, (known, most)]:
        row = weights
        if drifts < len(weights):
            row = adams_bashforth_weights(times, drifts, time_variable)[-1]
        prior = [row[:drifts].sum(), *[-row[i:drifts].sum() for i in range(1, drifts)]]
        chosen, start = list(range(drifts)), known
        for count in counts:
            chosen += range(start, start + min(used, count))
            prior += [0.0] * min(used, count)
            start += count
        if counts:
            prior[-min(used, counts[-1])] = length
        found.append((tuple(chosen), np.array(prior)))
    return found
