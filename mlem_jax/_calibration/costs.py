"""The cost of one evaluation of each level, in FLOPs as compiled and in wall-clock seconds."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from .._custom_types import Args, Y
from .._term import MultilevelTerm
from .pilots import PilotInputs

# The median of five calls ignores two that were interrupted.
_TIMED_CALLS = 5


def check_costs(
    term: MultilevelTerm, costs: Sequence[float] | str | None
) -> Float[np.ndarray, " levels"] | Literal["flops", "seconds"]:
    """The given costs or the term's as an array, or the unit in which to measure them. Raises `ValueError` for invalid
    costs."""
    if costs is None:
        costs = "flops" if term.costs is None else term.costs
    if isinstance(costs, str):
        if costs == "flops" or costs == "seconds":
            return costs
        raise ValueError(f"costs={costs!r}: 'flops', 'seconds' or one number for each level is expected.")
    array = np.asarray(costs, float)
    if array.shape != (len(term.levels),) or not np.all((array > 0) & np.isfinite(array)):
        raise ValueError(
            f"calibrate needs one positive cost for each of the {len(term.levels)} levels and has "
            f"{list(costs)}. Write MultilevelTerm(..., costs=(...)) or calibrate(..., costs=(...)), in any unit."
        )
    return array


def relative_costs(
    term: MultilevelTerm,
    costs: Float[np.ndarray, " levels"] | Literal["flops", "seconds"],
    seconds: Float[np.ndarray, " levels"],
    t: Any,
    y0: Y,
    args: Args,
) -> Float[np.ndarray, " levels"]:
    """Costs in evaluations of the finest level."""
    if isinstance(costs, str):
        costs = seconds if costs == "seconds" else np.array([_flops(f, t, y0, args) for f in term.levels])
        if not np.all(costs > 0):
            raise ValueError(
                f"XLA reports {costs.tolist()} FLOPs for the levels, which cannot be their whole cost. Write "
                "MultilevelTerm(..., costs=(...)), in any unit, or calibrate(..., costs='seconds')."
            )
    return costs / costs[-1]


def _flops(level: Any, t: Any, y0: Y, args: Args) -> float:
    """0 on a device whose compiler does not count."""
    jitted: Any = eqx.filter_jit(level)
    analysis = jitted.lower(t, y0, args).compile().compiled.cost_analysis()
    return float((analysis or {}).get("flops", 0.0))


def time_levels(term: MultilevelTerm, t: Any, ys: Y, inputs: PilotInputs, args: Args) -> np.ndarray:
    """The median wall-clock seconds of one evaluation of each level on a batch, without compilation, `(K,)`."""
    medians = []
    for level in term.levels:

        def on_batch(t: Any, ys: Y, inputs: PilotInputs, args: Args, level: Callable = level) -> Y:
            return jax.vmap(lambda y, inputs: level(t, y, inputs.args(args)))(ys, inputs)

        call = eqx.filter_jit(on_batch)
        jax.block_until_ready(call(t, ys, inputs, args))
        times = []
        for _ in range(_TIMED_CALLS):
            start = time.perf_counter()
            jax.block_until_ready(call(t, ys, inputs, args))
            times.append(time.perf_counter() - start)
        medians.append(float(np.median(times)))
    return np.array(medians)
