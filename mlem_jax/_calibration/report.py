"""The report of a calibration, modelled on Giles' `mlmc_test` (Acta Numerica 2015)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .._checks import counted
from .measurements import Measurements
from .plan import times
from .trials import Trials

# Warnings are given beyond these bounds. Giles (2015, section 3) warns of a kurtosis above 100.
_KURTOSIS = 100.0
# The linear model's prediction of a single level's error, over the measured error. For the shipped levels the ratio
# lies between 0.73 and 1.88.
_FAR_OFF = 3.0
# The ratio of the costs of neighbouring levels. With gamma = 2.5 a level of half the cost has only 1.3 times the error;
# the shipped ladders have ratios from 4.7 to 6.1.
_CLOSE_COSTS = 2.0
# Measured over predicted error of a trial run, the bound of `planning._STRONGLY_NONLINEAR`.
_MUCH_WORSE = 2.0
# Levels with an increment above this fraction of the cheapest level's lie on the plateau before errors decrease.
_PLATEAU = 0.5
# The autocorrelation below which effects are called uncorrelated.
_CORRELATED = 0.5
# Independent coins reduce the exponent of the cost only for gamma above 2 (Jacot 2026).
_HARDER_THAN_MONTE_CARLO = 2.0
_SMALLEST = 1e-30


class Regression(NamedTuple):
    """`|D_k| ~ C_k**(-1 / gamma)`, fitted by least squares in logarithms.

    - `gamma` and its `standard_error` (infinite with two points); `levels`, the numbers of the levels in the fit.
    - `giles_beta`, `giles_gamma`: the exponents of Giles, `V ~ 2**(-beta l)` and `C ~ 2**(gamma_G l)` with `l` the
        number of the level. The two gammas differ: `gamma = 2 gamma_G / beta`.
    """

    gamma: float
    standard_error: float
    levels: tuple[int, ...]
    giles_beta: float
    giles_gamma: float


def regression(measured: Measurements) -> Regression | None:
    """Fits gamma to the levels' `mass`, the size of their effects on the end state.

    The fit leaves out the cheapest level, which is not a correction, and the next levels while their mass is larger
    than half of the cheapest level's: errors have not started to decrease there; and levels without any effect. `None`
    if fewer than two levels remain.
    """
    mass, costs = measured.mass, measured.costs
    used = [k for k in range(1, measured.num_levels) if mass[k] > 0]
    while len(used) > 2 and mass[used[0]] > _PLATEAU * mass[0]:
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
    """The kurtosis of the effects `J D_k` over pilots and directions, averaged over time with weights
    `h**2 E(J D_k)**2`, `(K,)`. It is 3 for a Gaussian; a large value means that few trajectories dominate the error."""
    effects = measured.effects.astype(float)
    second, fourth = np.mean(effects**2, axis=(2, 3)), np.mean(effects**4, axis=(2, 3))
    weights = np.diff(measured.ts)[:, None] ** 2 * second
    ratios = fourth / np.where(second > 0, second, 1) ** 2
    # 0 for a level without any effect.
    total = np.sum(weights, axis=0)
    return np.sum(weights * ratios, axis=0) / np.where(total > 0, total, 1)


def memory(measured: Measurements) -> np.ndarray:
    """The number of steps over which the effects `h J D_k` are correlated: the lag at which their autocorrelation along
    the trajectory falls below one half, `(K,)`. The errors of coupled coins cancel within windows shorter than that."""
    moves = measured.effects.astype(float) * np.abs(np.diff(measured.ts))[:, None, None, None]
    steps = moves.shape[0]
    found = np.full(measured.num_levels, float(steps))
    for k in range(measured.num_levels):
        x = moves[:, k].reshape(steps, -1)
        for lag in range(1, steps):
            top = np.sum(x[lag:] * x[:-lag])
            bottom = np.sqrt(np.sum(x[lag:] ** 2) * np.sum(x[:-lag] ** 2))
            if top < _CORRELATED * bottom:
                found[k] = lag
                break
    return found


def alone_ratio(measured: Measurements) -> Float[np.ndarray, " levels"]:
    """The distance of each level alone to the finest level at the end, as predicted from the effects by
    `sum_n h_n J (f^K - f^k)`, over the measured distance, `(K,)`; NaN for the finest level.

    The prediction uses the sweep along the finest level's trajectory, the measurement solves of the level alone. The
    ratio is about 1 where the linear model holds. It is far from 1 if the level departs far from the finest level's
    trajectory, or if it is not a function of its arguments, so that the sweep and the solves evaluate different drifts.
    """
    moves = np.einsum("nkpr,n->kpr", measured.effects.astype(float), np.abs(np.diff(measured.ts)))
    # The increments of all finer levels, which a level alone does not have.
    missing = np.cumsum(moves[::-1], axis=0)[::-1][1:]
    predicted = np.sqrt(np.mean(missing**2, axis=(1, 2)))
    found = measured.single_error[:-1, -1]
    return np.append(predicted / np.maximum(found, _SMALLEST), np.nan)


def dominated(measured: Measurements) -> list[int]:
    """The numbers of the levels without which independent coins are cheaper. Leaving a level out makes the increment of
    the next level larger, but may make the sum of `mass * sqrt(cost)` over levels, which determines the cost at a given
    error (docs/theory.md, "Probabilities"), smaller."""

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
    """Warnings about levels and trial runs."""
    found = []
    for k, value in enumerate(kurtosis(measured)):
        if value > _KURTOSIS:
            found.append(
                f"Level {k + 1}: kurtosis {value:.0f} > {_KURTOSIS:.0f}: few trajectories dominate the error; use more "
                "pilots."
            )
    for k, ratio in enumerate(alone_ratio(measured)[:-1]):
        if not 1 / _FAR_OFF < ratio < _FAR_OFF:
            found.append(
                f"Level {k + 1}: the linear model predicts {ratio:.2g} times the measured distance of this level alone "
                "to the finest level. Predictions with this level are not reliable. Is it a function of t, y and args "
                "only?"
            )
    ratios = measured.costs[1:] / measured.costs[:-1]
    for k, ratio in enumerate(ratios):
        if ratio < _CLOSE_COSTS:
            found.append(
                f"Levels {k + 1} and {k + 2} are close together: their costs differ only by a factor of {ratio:.2g}."
            )
    for number in dominated(measured):
        found.append(f"Level {number} costs more than it corrects; a plan may leave it out.")
    fit = regression(measured)
    if fit is not None and 0 < fit.gamma <= _HARDER_THAN_MONTE_CARLO:
        found.append(
            f"gamma = {fit.gamma:.2f} is not above 2: independent coins do not reduce the cost here (the drift is not "
            "harder than Monte Carlo); coupled coins may."
        )
    for name, budget, predicted, found_error in zip(
        trials.coins, trials.budget, trials.predicted, trials.measured, strict=True
    ):
        if found_error > _MUCH_WORSE * predicted:
            found.append(
                f"{name} at budget {budget:g}: the error of the trial run is "
                f"{times(found_error / max(predicted, _SMALLEST))} the linear prediction (strongly nonlinear)."
            )
    return found


def calibration_report(measured: Measurements, trials: Trials) -> str:
    """The report that `print(calibration)` shows."""
    costs, mass, ratio = measured.costs, measured.mass, alone_ratio(measured)
    variance = np.mean(measured.effect_rms**2, axis=0)
    worth = mass[1:] * np.sqrt(costs[1:] + costs[:-1])
    share = np.concatenate([[0.0], worth / max(worth.sum(), _SMALLEST)])
    columns = (
        ("cost", 10, costs, ".4g"),
        ("seconds", 9, measured.seconds, ".2g"),
        ("max D_k", 9, measured.increment_rms.max(axis=0), ".3g"),
        ("var J D_k", 10, variance, ".2g"),
        ("mass", 8, mass, ".3g"),
        ("kurtosis", 9, kurtosis(measured), ".1f"),
        ("memory", 7, memory(measured), ".0f"),
        ("alone", 7, ratio, ".2f"),
        ("share", 6, share, ".0%"),
    )
    lines = [
        f"{counted(measured.num_levels, 'level')}, {measured.num_steps} steps, "
        f"{measured.num_pilots} pilot trajectories",
        f"seconds: for a batch of {measured.batch} on {measured.device}",
        "level" + "".join(f"{name:>{width}}" for name, width, *_ in columns),
    ]
    for k in range(measured.num_levels):
        cells = ["-" if np.isnan(v[k]) else format(v[k], form) for _, _, v, form in columns]
        widths = [width for _, width, *_ in columns]
        lines.append(f"{k + 1:5d}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    lines += [*_LEGEND, *gamma_lines(measured)]
    finest = ", ".join(
        f"{error:.3g} ({steps})"
        for steps, error in zip(measured.single_steps, measured.single_error[-1], strict=True)
    )
    lines.append(f"errors of {measured.method.single_level_name} on the finest level (steps): {finest}")
    return "\n".join([*lines, *warnings(measured, trials)])


_LEGEND = (
    "(max D_k: RMS of the increment where it is largest; var J D_k: mean square of its",
    "effect on the end state; mass: sum of h times RMS of J D_k; memory: steps until",
    "effects decorrelate; alone: distance of the level alone to the finest level,",
    "predicted over measured; share: of the cost-error product of independent coins)",
)


def gamma_lines(measured: Measurements) -> list[str]:
    """Gamma, or the reason why there is none."""
    fit = regression(measured)
    if fit is None:
        return ["gamma: needs at least three levels"]
    names = ", ".join(map(str, fit.levels))
    if not fit.gamma > (2 * fit.standard_error if np.isfinite(fit.standard_error) else 0):
        return [
            f"gamma cannot be measured here (the fit gives {fit.gamma:.3g} ± {fit.standard_error:.2g}): the effects of "
            f"levels {names} do not decrease as a power of their costs."
        ]
    uncertainty = "" if np.isinf(fit.standard_error) else f" ± {fit.standard_error:.2f}"
    return [
        f"gamma = {fit.gamma:.2f}{uncertainty} (mass of levels {names} against cost);",
        f"in Giles' notation beta = {fit.giles_beta:.2f}, gamma_G = {fit.giles_gamma:.2f} per level, and gamma = "
        "2 gamma_G / beta",
    ]
