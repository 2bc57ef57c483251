"""Four measures of the distance of each level of a ladder to the finest level, and their dependence on its cost.

In the theory, level `k` has the error `2**-k` at a cost of `2**(gamma k)`, so errors decrease as `cost**(-1 / gamma)`.
Since the exact drift is unknown, the finest level replaces it. This makes the errors of levels close to it too small,
and the finest level has no error. Increments between neighbouring levels, which determine the cost of the method, do
not need the exact drift.
"""

from collections.abc import Sequence
from textwrap import wrap
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _curves import decimal_logarithms
from _harness import interleaved_seconds
from _methods import Shared
from _rivals import Euler, march, Plain
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from mlem_jax.diffusion import Ladder
from mlem_jax.diffusion._data import Images
from mlem_jax.diffusion._training import held_out_losses

# The errors to which gamma is fitted.
MEASURES = {
    "held_out_distance": "RMS distance of the networks' outputs to the finest's on noised held-out images",
    "distance": "largest RMS distance of the drift to the finest's along the finest's trajectories",
    "effect": "RMS distance of images by this level alone to those by the finest, from the same noise",
    "increment": "largest RMS distance of the drift to the next cheaper level's along the finest's trajectories",
}


class Fit(NamedTuple):
    """A least-squares fit of `error ~ cost**(-1 / gamma)` in logarithms over some levels, given by their numbers.
    `gamma` is `None` if the errors do not decrease, `standard_error` is `None` with fewer than three points."""

    measure: str
    levels: tuple[int, ...]
    gamma: float | None
    standard_error: float | None


def level_errors(
    ladder: Ladder, problem: Shared, held_out: Images, *, images: int, seed: int, repeats: int
) -> list[dict[str, Any]]:
    """One row per level: its FLOPs, seconds for a batch, losses and distances. Trajectories are those of Euler's
    method on the problem's grid."""
    y0 = problem.scale * jr.normal(jr.key(seed), (images, *problem.shape))
    losses = held_out_losses(ladder.config, ladder.networks, held_out)
    distance, increment = _along(problem.levels, problem.ts, y0)
    ends = [march(Euler(Plain(level, 1.0)), np.asarray(problem.ts), y0)[0]() for level in problem.levels]
    calls = [eqx.filter_jit(lambda y, f=f: f(problem.ts[0], y, None)) for f in problem.levels]
    seconds = interleaved_seconds([lambda call=call: call(y0) for call in calls], repeats=repeats)
    last = len(problem.levels) - 1
    rows = []
    for k, flops in enumerate(ladder.flops()):
        effect = float(jnp.sqrt(jnp.mean((ends[k] - ends[-1]) ** 2)))
        rows.append(
            {
                "level": k + 1,
                "mflops": flops / 1e6,
                "seconds": float(np.median(seconds[k])),
                "held_out_loss": losses["data"][k],
                "held_out_distance": losses["to_finest"][k] ** 0.5 if k < last else None,
                "distance": float(np.max(distance[:, k])) if k < last else None,
                "effect": effect if k < last else None,
                "increment": float(np.max(increment[:, k - 1])) if k else None,
            }
        )
    return rows


@eqx.filter_jit
def _along(
    levels: Sequence[Any], ts: Float[Array, " times"], y0: Float[Array, "n ..."]
) -> tuple[Float[Array, "steps levels"], Float[Array, "steps levels_minus_1"]]:
    """At each step of Euler's method on the finest level the RMS distances of all levels to it, and between
    neighbouring levels."""

    def step(y: Array, pair: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        drifts = jnp.stack([level(pair[0], y, None) for level in levels])
        away = drifts - drifts[-1:]
        axes = tuple(range(1, drifts.ndim))
        rms = jnp.sqrt(jnp.mean(away**2, axes)), jnp.sqrt(jnp.mean(jnp.diff(drifts, axis=0) ** 2, axes))
        return y + (pair[1] - pair[0]) * drifts[-1], rms

    return jax.lax.scan(step, y0, (ts[:-1], ts[1:]))[1]


def fit(measure: str, levels: Sequence[int], costs: Sequence[float], errors: Sequence[float]) -> Fit:
    """Raises `ValueError` with fewer than two points."""
    if len(costs) < 2:
        raise ValueError(f"gamma needs at least two levels, and {measure} has {len(costs)}.")
    x, y = np.log(costs), np.log(errors)
    slope, intercept = np.polyfit(x, y, 1)
    if slope >= 0:
        return Fit(measure, tuple(levels), None, None)
    if len(costs) == 2:
        return Fit(measure, tuple(levels), float(-1 / slope), None)
    left = y - slope * x - intercept
    variance = np.sum(left**2) / (len(x) - 2) / np.sum((x - x.mean()) ** 2)
    # The derivative of -1 / slope is 1 / slope**2.
    return Fit(measure, tuple(levels), float(-1 / slope), float(variance**0.5 / slope**2))


def gammas(rows: Sequence[dict[str, Any]]) -> list[Fit]:
    """For each measure a fit over all levels, and one without the cheapest level, which may lie on a plateau before
    errors start to decrease."""
    found = []
    for measure in MEASURES:
        points = [(r["level"], r["mflops"], r[measure]) for r in rows if r[measure]]
        for chosen in (points, points[1:]):
            if len(chosen) >= 2:
                found.append(fit(measure, *zip(*chosen, strict=True)))
    return found


def draw_levels(ladders: dict[str, Sequence[dict[str, Any]]]) -> Figure:
    """Error of each level against its cost: a panel for each measure, a line for each ladder with its gamma."""
    figure = Figure(figsize=(4.4 * len(MEASURES), 4.2), layout="constrained")
    for axis, (measure, words) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        for name, rows in ladders.items():
            points = [(r["level"], r["mflops"], r[measure]) for r in rows if r[measure]]
            levels, costs, errors = zip(*points, strict=True)
            label = name
            if len(levels) > 1:
                gamma = fit(measure, levels, costs, errors).gamma
                label += ": no power law" if gamma is None else f": gamma {gamma:.1f}"
            axis.plot(costs, errors, marker="o", label=label)
        decimal_logarithms(axis)
        axis.set(xlabel="MFLOP per image", title="\n".join(wrap(words, 44)))
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    return figure


def in_words(fits: Sequence[Fit]) -> str:
    """One line for each fit."""
    lines = []
    for one in fits:
        numbers = ", ".join(map(str, one.levels))
        if one.gamma is None:
            result = "no power law: the errors do not decrease"
        elif one.standard_error is None:
            result = f"gamma {one.gamma:.2f} from two points"
        else:
            result = f"gamma {one.gamma:.2f} ± {one.standard_error:.2f}"
        lines.append(f"{one.measure} of levels {numbers}: {result}")
    return "\n".join(lines)
