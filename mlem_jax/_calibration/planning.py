"""Choosing levels, steps and probabilities: a search over what the calibration can price."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .._coins import AbstractCoins, SystematicCoins
from .allocation import FEW_LOOKS, within
from .calibration import Calibration
from .linear_model import corrected, FEW_SEEDS, is_deterministic, MANY_SEEDS, predict, select, Selection
from .plan import coins_name, Plan
from .single_level import alone_plan, best_alone, speedups

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
    seeds = MANY_SEEDS if final else FEW_SEEDS
    table = within(kicks, coins, budget, shares, seeds)
    if table is None:
        return None
    cost, linear, spread = predict(kicks, table, coins, seeds=seeds)
    error, spread = corrected(calibration, coins, budget, linear, spread)
    discretisation = float(calibration.single_level_error(calibration.num_levels - 1, kicks.steps))
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


def _selections(
    calibration: Calibration, steps: int | None, levels: tuple[int, ...] | None, budget: float | int
):
    total, last = len(calibration.ts) - 1, calibration.num_levels - 1
    strides = [total // count for count in reversed(calibration.single_steps.tolist())]
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
    in_seconds: bool = False,
) -> Plan:
    """Decides how to solve within a budget, or for a target error; also as `calibration.plan(...)`.

    Tries all sets of levels that keep the finest one and all step counts that the calibration has tried. For coins
    that are independent over steps, probabilities are the optimum `min(1, L h sqrt(V / C))` (Jacot 2026). For
    coupled coins a window's error is the variation of the kick inside it, which that profile over time keeps small
    too, but how much each level should get differs: its share is found by simulating the coins on the pilot
    trajectories.

    **Arguments:**

    - `budget`: expected cost in finest-level evaluations; or `error`: the wanted RMS distance to the exact solution
        of the finest level. Exactly one of them.
    - `coins`: the policy, by default the midpoint pattern.
    - `steps`, `levels`: fix the number of steps (a divisor of the calibration's) or the kept levels
        (indices, the finest last) instead of searching.
    - `in_seconds`: costs are what the clock said when the levels were calibrated, for batches of the size and on the
        device that they were calibrated with, instead of the calibration's `costs` (FLOPs unless it was told others).
        Small networks take longer than their FLOPs say. The budget is then in times of the finest level.

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
    if in_seconds:
        seconds = calibration.seconds / calibration.seconds[-1]
        calibration = dataclasses.replace(calibration, costs=seconds)
    plan = _make_plan(calibration, budget, error, coins, steps, levels)
    if not in_seconds:
        return plan
    clock = f"Costs are by the clock, of batches of {calibration.batch} on {calibration.device}."
    return dataclasses.replace(plan, advice=(*plan.advice, clock))


def _make_plan(
    calibration: Calibration,
    budget: float | int | None,
    error: float | int | None,
    coins: AbstractCoins,
    steps: int | None,
    levels: tuple[int, ...] | None,
) -> Plan:
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
    # Who names the levels wants all of them.
    alone = best_alone(calibration, budget, steps) if levels is None else None
    if alone is not None and (best is None or alone.error <= best.error):
        return alone_plan(calibration, coins, alone, None if best is None else best.error)
    if best is None:
        fewest = int(calibration.single_steps[0] if steps is None else steps)
        cheapest = calibration.costs[0 if levels is None else levels[0]]
        raise ValueError(
            f"A budget of {budget:g} finest-level evaluations is too small: {fewest} steps of the cheapest level "
            f"cost {fewest * cheapest:.3g}, and corrections come on top. Give a larger budget"
            + (", or leave the choice of levels and steps to the plan." if levels or steps else ".")
        )
    advice = []
    dropped = [k + 1 for k in range(last + 1) if k not in best.selection.levels]
    if dropped:
        names = ", ".join(map(str, dropped))
        advice.append(
            f"Level {names} is left out: without it the error is smaller."
            if len(dropped) == 1
            else f"Levels {names} are left out: without them the error is smaller."
        )
    if coins_name(coins) not in calibration.check_coins:
        advice.append("These coins were not tried on the pilots; the prediction is the linear model's.")
    elif not 0.5 < best.factor < 2:
        advice.append(
            f"With what trial runs showed, the coins err {best.factor:.1f} times what the linear model says: "
            "strongly nonlinear at this budget, trust the prediction less."
        )
    looks = float(np.sum(best.table[:, -1]))
    if looks < FEW_LOOKS:
        advice.append(
            f"The finest level is looked at {looks:.1f} times only: trajectories may leave their path between looks, "
            "trust the prediction less."
        )
    if best.spread > 0.15:
        advice.append(
            f"The prediction rests on {calibration.kicks.shape[2]} pilot trajectories that differ much "
            f"(± {100 * best.spread:.0f}%); calibrate with more."
        )
    over_finest, over_single = speedups(calibration, best.error, best.cost)
    if over_single < 1.05:
        advice.append("No gain over the best single level at this error.")
    return Plan(
        ts=calibration.ts[:: best.selection.stride],
        levels=best.selection.levels,
        table=best.table,
        coins=coins,
        order=calibration.order,
        clock=calibration.clock,
        costs=calibration.costs[list(best.selection.levels)],
        cost=best.cost,
        error=best.error,
        discretisation=best.discretisation,
        coin_error=best.coins,
        relative_error_of_prediction=best.spread,
        nonlinearity=best.factor,
        speedup_over_finest=over_finest,
        speedup_over_single=over_single,
        finest_error=calibration.finest_error,
        advice=tuple(advice),
    )
