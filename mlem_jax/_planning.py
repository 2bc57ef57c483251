"""Choosing levels, steps and probabilities: a search over what the calibration can price."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ._calibration import Calibration
from ._coins import AbstractCoins, SystematicCoins
from ._plan import coins_name, Plan
from ._predict import (
    expected_cost,
    FEW_SEEDS,
    is_deterministic,
    Kicks,
    MANY_SEEDS,
    predict,
    select,
    Selection,
)

_FEWEST_STEPS = 8
_REFINED = 3  # How many of the best selections have their levels' shares refined.
_MIDPOINT = SystematicCoins(offset=0.5)


class _Candidate(NamedTuple):
    selection: Selection
    table: Float[np.ndarray, "steps levels"]
    cost: float
    error: float
    discretisation: float
    coins: float
    spread: float
    factor: float


def corrected(
    calibration: Calibration, coins: AbstractCoins, budget: float | int, linear: float
) -> float | None:
    """The coins' error at this budget, from what the linear model says and what trial runs of the policy showed;
    `None` if it was not tried.

    What a trial erred beyond the linear model's square is the work of second-order terms, which depend on how long
    the windows are (the budget) and not on how well the linear parts happen to cancel, so it is added; what it
    erred less is a factor. Straight lines in logarithms between budgets, constant beyond.
    """
    mine = [i for i, name in enumerate(calibration.check_coins) if name == coins_name(coins)]
    if not mine:
        return None
    mine.sort(key=lambda i: calibration.check_budget[i])
    x = np.log(calibration.check_budget[mine])
    predicted, measured = calibration.check_predicted[mine], calibration.check_measured[mine]
    beyond = np.sqrt(np.maximum(measured**2 - predicted**2, (1e-3 * measured) ** 2))
    here = np.log(budget)
    factor = np.exp(np.interp(here, x, np.log(np.minimum(1.0, measured / predicted))))
    return float(np.hypot(factor * linear, np.exp(np.interp(here, x, np.log(beyond)))))


def _shape(kicks: Kicks, p: np.ndarray) -> np.ndarray:
    """`h sqrt(V / C)`, the optimum for coins that are independent over steps, with `C` the derivative of the
    expected cost in `p_k`: a look at `D_k` evaluates `f^k` and `f^{k-1}`, unless they run anyway."""
    effect = np.sqrt(np.mean(kicks.values**2, axis=2))
    finer = np.concatenate([p[:, 1:], np.zeros_like(p[:, :1])], axis=1)
    coarser = np.concatenate([np.ones_like(p[:, :1]), p[:, :-1]], axis=1)
    below = np.concatenate([[0.0], kicks.costs[:-1]])
    marginal = kicks.costs * (1 - finer) + below * (1 - coarser)
    # Where the next level always fires too, a look is all but free.
    marginal = np.maximum(marginal, 1e-3 * kicks.costs + 1e-12)
    shape = kicks.lengths[:, None] * effect / np.sqrt(marginal)
    # A level that changes nothing at some time is still looked at now and then.
    return np.maximum(shape, 1e-6 * shape.max(axis=0) + 1e-30)


def _table(kicks: Kicks, scale: float, shares: np.ndarray) -> np.ndarray:
    """Probabilities `min(1, scale * share_k * shape_k)`, and 1 for the cheapest level and the padding."""
    p = np.zeros_like(kicks.values[:, :, 0])
    p[:, : kicks.pad + 1] = 1.0
    # The marginal costs depend on the probabilities themselves; four rounds settle that.
    for _ in range(4):
        wanted = np.minimum(1.0, scale * shares * _shape(kicks, p))
        p[: kicks.steps, kicks.pad + 1 :] = wanted[: kicks.steps, kicks.pad + 1 :]
        p[kicks.steps :] = 1.0
    return p


def _within(kicks: Kicks, coins: AbstractCoins, budget: float | int, shares: np.ndarray) -> np.ndarray | None:
    """The probabilities of this family that cost the budget, or `None` if none costs so little."""
    low, high = -30.0, 30.0
    if expected_cost(kicks, _table(kicks, np.exp(low), shares), coins) > budget:
        return None
    while high - low > 0.01:
        middle = 0.5 * (low + high)
        cheap = expected_cost(kicks, _table(kicks, np.exp(middle), shares), coins) <= budget
        low, high = (middle, high) if cheap else (low, middle)
    return _table(kicks, float(np.exp(low)), shares)


def _candidate(
    calibration: Calibration,
    selection: Selection,
    coins: AbstractCoins,
    budget: float | int,
    shares: np.ndarray,
    *,
    final: bool = False,
) -> _Candidate | None:
    kicks = select(calibration, selection)
    table = _within(kicks, coins, budget, shares)
    if table is None:
        return None
    seeds = MANY_SEEDS if final else FEW_SEEDS
    cost, linear, spread = predict(kicks, table, coins, seeds=seeds)
    tried = corrected(calibration, coins, budget, linear)
    error = linear if tried is None else tried
    discretisation = calibration.single_level_error(calibration.num_levels - 1, kicks.steps)
    total = float(np.hypot(error, discretisation))
    kept = table[: kicks.steps, kicks.pad :]
    factor = error / max(linear, 1e-300)
    return _Candidate(selection, kept, cost, total, discretisation, error, spread, factor)


def _refine(
    calibration: Calibration, start: _Candidate, shares: np.ndarray, coins: AbstractCoins, budget: float | int
) -> tuple[_Candidate, np.ndarray]:
    """Moves the levels' shares of the cost, one at a time, as long as the predicted error falls."""
    best, pad = start, len(shares) - len(start.selection.levels)
    for factor in (2.0, 2.0**0.5):
        for column in range(pad + 2, len(shares)):
            for change in (factor, 1 / factor):
                while True:
                    moved = shares.copy()
                    moved[column] *= change
                    found = _candidate(calibration, start.selection, coins, budget, moved)
                    # A small gain may be the pilots' luck.
                    if found is None or found.error > 0.98 * best.error:
                        break
                    best, shares = found, moved
    return best, shares


def steps_for_error(calibration: Calibration, level: int, error: float | int) -> float:
    """Steps of Euler on one level alone for this error; infinite if they never reach it."""
    low, high = 0.0, np.log(1e6)
    if calibration.single_level_error(level, float(np.exp(high))) > error:
        return np.inf
    while high - low > 1e-3:
        middle = 0.5 * (low + high)
        met = calibration.single_level_error(level, float(np.exp(middle))) <= error
        low, high = (low, middle) if met else (middle, high)
    return float(np.exp(high))


def _selections(
    calibration: Calibration, steps: int | None, levels: tuple[int, ...] | None, budget: float | int
):
    total, last = len(calibration.ts) - 1, calibration.num_levels - 1
    strides = [m for m in (1, 2, 4, 8, 16, 32) if total % m == 0 and total // m >= min(_FEWEST_STEPS, total)]
    if steps is not None:
        if steps < 1 or total % steps:
            raise ValueError(f"steps={steps} must divide the calibration's {total} steps.")
        strides = [total // steps]
    if levels is None:
        subsets = []
        for mask in range(1, 2**last):
            subsets.append((*[k for k in range(last) if mask >> k & 1], last))
    else:
        if list(levels) != sorted(set(levels)) or len(levels) < 2 or levels[-1] != last or levels[0] < 0:
            raise ValueError(
                f"levels={levels}: indices in increasing order are expected, at least two, the last "
                f"{last} (the finest)."
            )
        subsets = [tuple(levels)]
    for stride in strides:
        for subset in subsets:
            if calibration.costs[subset[0]] * (total // stride) < budget:
                yield Selection(subset, stride)


def _best(
    calibration: Calibration,
    coins: AbstractCoins,
    budget: float | int,
    steps: int | None,
    levels: tuple[int, ...] | None,
) -> _Candidate | None:
    equal = np.ones(calibration.num_levels)
    # A pattern without randomness is chosen as if its phases were random, lest the choice fit the pilots'
    # accidents.
    chooser = SystematicCoins() if is_deterministic(coins) else coins
    found = [
        candidate
        for selection in _selections(calibration, steps, levels, budget)
        if (candidate := _candidate(calibration, selection, chooser, budget, equal)) is not None
    ]
    found.sort(key=lambda candidate: candidate.error)
    refined = [_refine(calibration, candidate, equal, chooser, budget) for candidate in found[:_REFINED]]
    if not refined:
        return None
    best, shares = min(refined, key=lambda pair: pair[0].error)
    return _candidate(calibration, best.selection, coins, budget, shares, final=True)


def make_plan(
    calibration: Calibration,
    *,
    budget: float | int | None = None,
    error: float | int | None = None,
    coins: AbstractCoins = _MIDPOINT,
    steps: int | None = None,
    levels: tuple[int, ...] | None = None,
) -> Plan:
    """Decides how to solve within a budget, or for a target error; also as `calibration.plan(...)`.

    Tries all sets of levels that keep the finest one and all step counts that divide the calibration's by a
    power of two. For coins that are independent over steps, probabilities are the optimum
    `min(1, L h sqrt(V / C))` (Jacot 2026). For coupled coins a window's error is the variation of the kick inside
    it, which that profile over time keeps small too, but how much each level should get differs: its
    share is found by simulating the coins on the pilot trajectories.

    **Arguments:**

    - `budget`: expected cost in finest-level evaluations; or `error`: the wanted RMS distance to the exact solution
        of the finest level. Exactly one of them.
    - `coins`: the policy, by default the midpoint pattern.
    - `steps`, `levels`: fix the number of steps (a divisor of the calibration's) or the kept levels
        (indices, the finest last) instead of searching.

    Raises `ValueError` if both or neither of budget and error are given, if they are not positive, or if they
    cannot be met.
    """
    if (budget is None) == (error is None):
        raise ValueError(f"A plan needs budget=... or error=..., one of them; got {budget} and {error}.")
    wanted = budget if error is None else error
    assert wanted is not None
    if not 0 < wanted < np.inf:
        raise ValueError(f"A budget or an error is a positive number; got {wanted}.")
    if not isinstance(coins, AbstractCoins):
        raise ValueError(f"coins={coins!r}: an object such as mlem_jax.StratifiedCoins() is expected.")
    if budget is not None:
        return _for_budget(calibration, coins, budget, steps, levels)
    assert error is not None
    low = np.log(float(np.min(calibration.costs)))
    high = np.log(4.0 * (len(calibration.ts) - 1))
    try:
        plan = _for_budget(calibration, coins, float(np.exp(high)), steps, levels)
    except ValueError:
        plan = None
    if plan is None or plan.error > error:
        least = "unknown" if plan is None else f"{plan.error:.3g}"
        raise ValueError(
            f"error={error:g} cannot be reached: with the calibration's {len(calibration.ts) - 1} steps the "
            f"predicted error is at least {least}. Calibrate with a finer ts, or accept a larger error."
        )
    while high - low > 0.02:
        middle = 0.5 * (low + high)
        try:
            found = _for_budget(calibration, coins, float(np.exp(middle)), steps, levels)
        except ValueError:
            found = None
        if found is not None and found.error <= error:
            plan, high = found, middle
        else:
            low = middle
    return plan


def _for_budget(
    calibration: Calibration,
    coins: AbstractCoins,
    budget: float | int,
    steps: int | None,
    levels: tuple[int, ...] | None,
) -> Plan:
    best = _best(calibration, coins, budget, steps, levels)
    last = calibration.num_levels - 1
    affordable = [k for k in range(last + 1) if budget >= calibration.costs[k]]
    single = min(
        affordable,
        key=lambda k: calibration.single_level_error(k, budget / calibration.costs[k]),
        default=None,
    )
    if best is None and single is None:
        raise ValueError(
            f"A budget of {budget:g} finest-level evaluations does not pay for one step of the cheapest level "
            f"({calibration.costs[0]:.3g}). Give a larger budget."
        )
    chosen_levels = levels is not None
    if single is not None and not chosen_levels:
        alone = calibration.single_level_error(single, budget / calibration.costs[single])
        if best is None or alone <= best.error:
            reached = None if best is None else best.error
            return _single_level(calibration, coins, single, budget, alone, reached)
    if best is None:
        raise ValueError(
            f"A budget of {budget:g} finest-level evaluations is too small for these levels and steps. Give "
            "a larger budget, or leave the choice of levels and steps to the plan."
        )
    advice = []
    dropped = [k + 1 for k in range(last + 1) if k not in best.selection.levels]
    if dropped:
        advice.append(f"Level {', '.join(map(str, dropped))} is left out: without it the error is smaller.")
    if corrected(calibration, coins, budget, 1.0) is None:
        advice.append("These coins were not tried on the pilots; the prediction is the linear model's.")
    elif not 0.5 < best.factor < 2:
        advice.append(
            f"With what trial runs showed, the coins err {best.factor:.1f} times what the linear model says: "
            "strongly nonlinear at this budget, trust the prediction less."
        )
    if best.spread > 0.15:
        advice.append(
            f"The prediction rests on {calibration.kicks.shape[2]} pilot trajectories that differ much "
            f"(± {100 * best.spread:.0f}%); calibrate with more."
        )
    euler, alone = _speedups(calibration, best.error, best.cost)
    if alone < 1.05:
        advice.append("No gain over the best single level at this error.")
    return Plan(
        ts=calibration.ts[:: best.selection.stride],
        levels=best.selection.levels,
        table=best.table,
        coins=coins,
        costs=calibration.costs[list(best.selection.levels)],
        cost=best.cost,
        error=best.error,
        discretisation=best.discretisation,
        coin_error=best.coins,
        relative_error_of_prediction=best.spread,
        nonlinearity=best.factor,
        speedup_over_euler=euler,
        speedup_over_single=alone,
        finest_error=calibration.finest_error,
        advice=tuple(advice),
    )


def _speedups(calibration: Calibration, error: float | int, cost: float) -> tuple[float, float]:
    needed = [
        calibration.costs[k] * steps_for_error(calibration, k, error) for k in range(calibration.num_levels)
    ]
    return float(needed[-1] / cost), float(min(needed) / cost)


def _single_level(
    calibration: Calibration,
    coins: AbstractCoins,
    level: int,
    budget: float | int,
    error: float | int,
    multilevel_error: float | None,
) -> Plan:
    total = len(calibration.ts) - 1
    steps = int(min(budget / calibration.costs[level], total))
    # A subset of the calibrated times, so that a noise path on their grid still fits.
    ts = calibration.ts[np.round(np.linspace(0, total, steps + 1)).astype(int)]
    cost = steps * float(calibration.costs[level])
    error = calibration.single_level_error(level, steps)
    reason = (
        "no combination of levels fits the budget"
        if multilevel_error is None
        else f"the best combination of levels would err {multilevel_error:.3g}"
    )
    euler, alone = _speedups(calibration, error, cost)
    return Plan(
        ts=ts,
        levels=(level,),
        table=np.ones((steps, 1)),
        coins=coins,
        costs=calibration.costs[[level]],
        cost=cost,
        error=error,
        discretisation=error,
        coin_error=0.0,
        relative_error_of_prediction=0.0,
        nonlinearity=1.0,
        speedup_over_euler=euler,
        speedup_over_single=alone,
        finest_error=calibration.finest_error,
        advice=(
            f"Use level {level + 1} alone: it errs {error:.3g} at this budget; {reason}. ML-EM does not pay here.",
        ),
    )
