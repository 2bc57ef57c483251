"""The choice between a multilevel plan and a single level, for a budget or a target error."""

import dataclasses

import numpy as np

from .._bisection import bisect
from .._checks import as_int, as_positive
from .._coins import AbstractCoins, as_coins, SystematicCoins
from .allocation import FEW_FIRINGS
from .candidates import best_candidate, Candidate, Search
from .measurements import Measurements
from .plan import Plan, times
from .single_level import best_alone, single_level_plan, speedups
from .trials import Trials

MIDPOINT = SystematicCoins(offset=0.5)
_CALLER = "A plan"
# The search for a target error determines the budget to 2%, well below the uncertainty of a predicted error.
_BRACKET = 0.02
# It starts from four times the cost of the finest level in all measured steps, more than any plan can use.
_LARGEST_BUDGET = 4.0
# Advice is given beyond these bounds. Trial runs change the prediction of the linear model by more than a factor of 2
# for 7 of 60 plans in benchmarks/results/prediction.json (by more than 4 for none), whose errors are within a factor of
# 1.21 of their predictions: the bound is cautious.
_STRONGLY_NONLINEAR = 2.0
# Beyond this factor nearly nothing of the prediction is the linear model's. No plan in prediction.json reaches it; for
# pure decay with MLAB2 tests/test_predictions.py allows three times the prediction, hence the factor of 3 in the
# advice.
_LINEAR_PART_CANCELS = 20.0
# A standard error of 15% means a 95% interval of about 30%. 10 of the 60 plans exceed it, 22 exceed half of it.
_UNCERTAIN = 0.15
# A gain of less than 5% is within the uncertainty of the predicted errors.
_GAIN = 1.05


class UnreachableError(ValueError):
    """No plan reaches the target error. `least` is the smallest error found, infinite if there is no plan at all."""

    def __init__(self, error: float | int, least: float, steps: int):
        found = (
            f"the predicted error is at least {least:.3g}"
            if np.isfinite(least)
            else "there is no plan at all"
        )
        super().__init__(
            f"An error of {error:g} cannot be reached: with the calibration's {steps} steps {found}. Calibrate with "
            "more steps, or accept a larger error."
        )
        self.least = least


def choose_plan(
    measured: Measurements,
    trials: Trials,
    *,
    budget: float | int | None = None,
    error: float | int | None = None,
    coins: AbstractCoins = MIDPOINT,
    steps: int | None = None,
    levels: tuple[int, ...] | None = None,
    in_seconds: bool = False,
) -> Plan:
    """The plan for a budget or a target error; arguments and errors as for `Calibration.plan`."""
    if (budget is None) == (error is None):
        raise ValueError(f"A plan needs budget=... or error=..., one of them; got {budget} and {error}.")
    if error is None:
        wanted = as_positive(_CALLER, budget, name="budget", example="budget=8")
    else:
        wanted = as_positive(_CALLER, error, name="error", example="error=0.05")
    steps = None if steps is None else as_int(_CALLER, steps, name="steps")
    if levels is not None:
        levels = tuple(as_int(_CALLER, level, name="levels", least=0) for level in levels)
    coins = as_coins(_CALLER, coins)
    search = Search(measured.in_seconds() if in_seconds else measured, trials, coins, steps, levels)
    if error is None:
        plan = _plan_for_budget(search, wanted)
    else:
        plan = _plan_for_error(search, wanted)
    if not in_seconds:
        return plan
    unit = f"Costs are wall-clock seconds of batches of {measured.batch} on {measured.device}."
    return dataclasses.replace(plan, advice=(*plan.advice, unit))


def _plan_for_error(search: Search, error: float | int) -> Plan:
    """The cheapest plan whose predicted error is at most `error`, by bisection of the budget."""
    measured = search.measured
    low = np.log(float(np.min(measured.costs)))
    high = np.log(_LARGEST_BUDGET * measured.num_steps)

    def attempt(log_budget: float) -> Plan | None:
        try:
            return _plan_for_budget(search, float(np.exp(log_budget)))
        except ValueError:
            return None

    plan = attempt(high)
    if plan is None or plan.error > error:
        raise UnreachableError(error, np.inf if plan is None else plan.error, measured.num_steps)

    def misses(log_budget: float) -> bool:
        nonlocal plan
        found = attempt(log_budget)
        if found is None or found.error > error:
            return True
        plan = found
        return False

    bisect(misses, low, high, width=_BRACKET)
    return plan


def _plan_for_budget(search: Search, budget: float | int) -> Plan:
    measured, steps, levels = search.measured, search.steps, search.levels
    best = best_candidate(search, budget)
    # If levels are given, a plan keeps all of them.
    alone = best_alone(measured, budget, steps) if levels is None else None
    if alone is not None and (best is None or alone.error <= best.error):
        return single_level_plan(measured, search.coins, alone, None if best is None else best.error)
    if best is None:
        fewest = int(measured.single_steps[0] if steps is None else steps)
        cheapest = measured.costs[0 if levels is None else levels[0]]
        raise ValueError(
            f"A budget of {budget:g} finest-level evaluations is too small: {fewest} steps of the cheapest level "
            f"cost {fewest * cheapest:.3g}, and corrections come on top. Give a larger budget"
            + (", or leave the choice of levels and steps to the plan." if levels or steps else ".")
        )
    over_finest, over_single = speedups(measured, best.error, best.cost)
    advice = _advice(search, best)
    if over_single < _GAIN:
        advice.append("No gain over the best single level at this error.")
    return Plan(
        ts=measured.ts[:: best.selection.stride],
        levels=best.selection.levels,
        table=best.table,
        coins=search.coins,
        method=measured.method,
        costs=measured.costs[list(best.selection.levels)],
        cost=best.cost,
        error=best.error,
        discretisation=best.discretisation,
        coin_error=best.coin_error,
        relative_error_of_prediction=best.uncertainty,
        nonlinearity=best.nonlinearity,
        speedup_over_finest=over_finest,
        speedup_over_single=over_single,
        finest_error=measured.finest_error,
        levels_id=measured.levels_id,
        state_id=measured.state_id,
        advice=tuple(advice),
    )


def _advice(search: Search, best: Candidate) -> list[str]:
    """Remarks on a multilevel plan."""
    measured, advice = search.measured, []
    dropped = [k + 1 for k in range(measured.num_levels) if k not in best.selection.levels]
    if dropped:
        names = ", ".join(map(str, dropped))
        advice.append(
            f"Level {names} is left out: without it the error is smaller."
            if len(dropped) == 1
            else f"Levels {names} are left out: without them the error is smaller."
        )
    if search.coins.name not in search.trials.coins:
        advice.append("These coins were not tried on the pilots: the prediction is that of the linear model.")
    elif best.nonlinearity > _LINEAR_PART_CANCELS:
        advice.append(
            "The linear parts of the coin errors cancel. The remainder was measured in trial runs with other budgets: "
            "the prediction may be off by a factor of 3."
        )
    elif not 1 / _STRONGLY_NONLINEAR < best.nonlinearity < _STRONGLY_NONLINEAR:
        advice.append(
            f"According to the trial runs the coin error is {times(best.nonlinearity)} that of the linear model: the "
            "problem is strongly nonlinear at this budget, and the prediction is less reliable."
        )
    firings = float(np.sum(best.table[:, -1]))
    if firings < FEW_FIRINGS:
        advice.append(
            f"The finest level is evaluated only {firings:.1f} times: between two evaluations trajectories may depart "
            "from those of the finest level, and the prediction is less reliable."
        )
    if best.uncertainty > _UNCERTAIN:
        advice.append(
            f"The prediction is uncertain (± {100 * best.uncertainty:.0f}%), because the {measured.num_pilots} pilot "
            "trajectories differ strongly; calibrate with more."
        )
    return advice
