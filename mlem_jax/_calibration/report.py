"""A calibration in words and numbers, in the manner of Giles' `mlmc_test` (Acta Numerica 2015)."""

from typing import NamedTuple

import numpy as np

from .measurements import Measurements
from .trials import Trials

_KURTOSIS = 100.0


class Regression(NamedTuple):
    """`|D_k| ~ C_k**(-1 / gamma)`, fitted by least squares in logarithms.

    - `gamma` and its `standard_error` (infinite with two points); `levels`, the numbers of those used.
    - `giles_beta`, `giles_gamma`: `V ~ 2**(-beta l)`, `C ~ 2**(gamma_G l)` with `l` the number of the level.
        The two gammas are not the same: `gamma = 2 gamma_G / beta`.
    """

    gamma: float
    standard_error: float
    levels: tuple[int, ...]
    giles_beta: float
    giles_gamma: float


def regression(measured: Measurements) -> Regression | None:
    """Measures gamma from the levels' `mass` (how far their increments could move the end state).

    The cheapest level is no correction and takes no part; nor do levels at the cheap end whose increment is
    not smaller than half of what the cheapest level itself moves: that is the plateau before a rate exists.
    `None` with fewer than two levels left.
    """
    mass, costs = measured.mass, measured.costs
    used = list(range(1, measured.num_levels))
    while len(used) > 2 and mass[used[0]] > 0.5 * mass[0]:
        used.pop(0)
    if len(used) < 2:
        return None
    x, y = np.log2(costs[used]), np.log2(mass[used])
    slope, intercept = np.polyfit(x, y, 1)
    left = y - (slope * x + intercept)
    freedom = len(used) - 2
    error = np.inf
    if freedom:
        error = np.sqrt(np.sum(left**2) / freedom / np.sum((x - x.mean()) ** 2))
    number = np.array(used, float)
    beta = -2 * np.polyfit(number, y, 1)[0]
    giles_gamma = np.polyfit(number, x, 1)[0]
    return Regression(
        float(-1 / slope),
        float(error / slope**2),
        tuple(k + 1 for k in used),
        float(beta),
        float(giles_gamma),
    )


def kurtosis(measured: Measurements) -> np.ndarray:
    """Of the effects `J D_k` over pilots and directions, averaged over time with weights `h**2 E(J D_k)**2`,
    `(K,)`. 3 for a Gaussian; large values mean that a few trajectories decide the error."""
    effects = measured.effects.astype(float)
    second, fourth = np.mean(effects**2, axis=(2, 3)), np.mean(effects**4, axis=(2, 3))
    weights = np.diff(measured.ts)[:, None] ** 2 * second
    return np.sum(weights * fourth / np.maximum(second, 1e-300) ** 2, axis=0) / np.sum(weights, axis=0)


def memory(measured: Measurements) -> np.ndarray:
    """Over how many steps the effects `h J D_k` stay alike: the lag at which their autocorrelation along
    the path falls below one half, `(K,)`. Coupled coins cancel what varies slower than that."""
    moves = measured.effects.astype(float) * np.abs(np.diff(measured.ts))[:, None, None, None]
    steps = moves.shape[0]
    found = np.full(measured.num_levels, float(steps))
    for k in range(measured.num_levels):
        x = moves[:, k].reshape(steps, -1)
        for lag in range(1, steps):
            top = np.sum(x[lag:] * x[:-lag])
            bottom = np.sqrt(np.sum(x[lag:] ** 2) * np.sum(x[:-lag] ** 2))
            if top < 0.5 * bottom:
                found[k] = lag
                break
    return found


def telescoping(measured: Measurements) -> np.ndarray:
    """z-scores, `(K,)`: the mean effect of `f^k` on one half of the pilots against the sum of the mean effects
    of `D_1, ..., D_k` on the other half. Beyond 4 or so, the levels are not what was differenced."""
    moves = np.einsum(
        "nkpr,n->kpr", measured.effects.astype(float), np.abs(np.diff(measured.ts)), optimize=True
    )
    total = np.cumsum(np.mean(moves, axis=2), axis=0)
    half = total.shape[1] // 2
    one, other = total[:, :half], total[:, half:]
    variance = np.var(one, axis=1) / max(half, 1) + np.var(other, axis=1) / other.shape[1]
    if half < 2:
        return np.full(measured.num_levels, np.nan)
    return (one.mean(1) - other.mean(1)) / np.sqrt(np.maximum(variance, 1e-300))


def useless(measured: Measurements) -> list[int]:
    """Levels (numbers) that cost more than they correct: dropping them leaves a larger increment for the next
    level, but `mass * sqrt(cost)`, what independent coins pay, summed over levels is smaller without."""

    def price(levels: list[int]) -> float:
        effects = measured.effects.astype(float)
        total, before = 0.0, levels[0]
        for k in levels[1:]:
            merged = effects[:, before + 1 : k + 1].sum(1)
            mass = np.abs(np.diff(measured.ts)) @ np.sqrt(np.mean(merged**2, axis=(1, 2)))
            total += mass * np.sqrt(measured.costs[k] + measured.costs[before])
            before = k
        return float(total)

    everything = list(range(measured.num_levels))
    whole = price(everything)
    return [k + 1 for k in everything[1:-1] if price([j for j in everything if j != k]) < whole]


def warnings(measured: Measurements, trials: Trials) -> list[str]:
    """Remarks on what will go wrong, in words."""
    found = []
    for k, value in enumerate(kurtosis(measured)):
        if value > _KURTOSIS:
            found.append(
                f"Level {k + 1}: kurtosis {value:.0f} > 100: a few trajectories decide the error; use more pilots."
            )
    for k, z in enumerate(telescoping(measured)):
        if abs(z) > 5:
            found.append(
                f"Level {k + 1}: telescoping check failed (z = {z:.1f}); is the level deterministic?"
            )
    ratios = measured.costs[1:] / measured.costs[:-1]
    for k, ratio in enumerate(ratios):
        if ratio < 2:
            found.append(
                f"Levels {k + 1} and {k + 2} are close together: their costs differ by a factor of {ratio:.2g} only."
            )
    for number in useless(measured):
        found.append(f"Level {number} costs more than it corrects; a plan may leave it out.")
    fit = regression(measured)
    if fit is not None and 0 < fit.gamma <= 2:
        found.append(
            f"gamma = {fit.gamma:.2f} is not above 2: independent coins do not pay here (the drift is not "
            "harder than Monte Carlo); coupled coins may."
        )
    for name, budget, predicted, found_error in zip(
        trials.coins, trials.budget, trials.predicted, trials.measured, strict=True
    ):
        if found_error > 2 * predicted:
            found.append(
                f"{name} at budget {budget:g}: trial runs erred {found_error / predicted:.1f} times the linear "
                "prediction (strongly nonlinear)."
            )
    return found


def calibration_report(measured: Measurements, trials: Trials) -> str:
    """The report that `print(calibration)` shows."""
    mass, kurt, lag, z = (f(measured) for f in (lambda c: c.mass, kurtosis, memory, telescoping))
    variance = np.mean(measured.effect_rms**2, axis=0)
    worth = mass[1:] * np.sqrt(measured.costs[1:] + measured.costs[:-1])
    share = np.concatenate([[0.0], worth / worth.sum()])
    lines = [
        f"{measured.num_levels} levels, {len(measured.ts) - 1} steps, {measured.effects.shape[2]} pilot "
        f"trajectories; seconds for a batch of {measured.batch} on {measured.device}",
        "level       cost    seconds  RMS D_k(max)  variance J D_k   mass  kurtosis  memory  telescoping  share",
    ]
    for k in range(measured.num_levels):
        lines.append(
            f"{k + 1:5d} {measured.costs[k]:10.4g} {measured.seconds[k]:10.3g} "
            f"{measured.increment_rms[:, k].max():13.4g} {variance[k]:15.3g} {mass[k]:6.3g} {kurt[k]:9.1f} "
            f"{lag[k]:7.0f} {z[k]:12.1f} {100 * share[k]:5.0f}%"
        )
    lines.append(
        "(mass: sum of h times RMS of J D_k; memory: steps until kicks decorrelate; telescoping: z-score; share of "
        "the cost-error product of independent coins)"
    )
    fit = regression(measured)
    if fit is None:
        lines.append("gamma: needs at least three levels")
    elif not fit.gamma > (2 * fit.standard_error if np.isfinite(fit.standard_error) else 0):
        lines.append(
            f"gamma cannot be measured here (a fit says {fit.gamma:.3g} ± {fit.standard_error:.2g}): the effects of "
            f"levels {', '.join(map(str, fit.levels))} do not fall as a power of their costs."
        )
    else:
        spread = "" if np.isinf(fit.standard_error) else f" ± {fit.standard_error:.2f}"
        lines.append(
            f"gamma = {fit.gamma:.2f}{spread} (mass of levels {', '.join(map(str, fit.levels))} against cost);"
        )
        lines.append(
            f"in Giles' letters beta = {fit.giles_beta:.2f}, gamma_G = {fit.giles_gamma:.2f} per level, and gamma = "
            "2 gamma_G / beta"
        )
    finest = ", ".join(
        f"{error:.3g} ({steps})"
        for steps, error in zip(measured.single_steps, measured.single_error[-1], strict=True)
    )
    lines.append(f"{measured.method.single_level_name} on the finest level errs (steps): {finest}")
    return "\n".join([*lines, *warnings(measured, trials)])
