"""The choice between plans: for a budget and for less, with coins and with fitted steps."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from .._coins import AbstractCoins
from .fit_catalogue import FittedSteps
from .fit_plan import FittedPlan
from .measurements import Measurements
from .plan import Plan
from .planning import choose_plan, MIDPOINT
from .trials import Trials

# A plan with coins for a budget is compared with those for these fractions of it, and replaced by one whose predicted
# error is smaller by this factor. A smaller difference is within the uncertainty of the predictions.
_SMALLER_BUDGETS, _BETTER = (2**-0.25, 2**-0.5), 1.2
# Where a plan with coins has an error larger than that of fitted steps by this factor, those for smaller budgets are
# not tried: they are seldom better by more than that, and each takes a third of a second.
_FAR = 1.25


class PlanRequest(NamedTuple):
    """The arguments of [`mlem_jax.Calibration.plan`][]."""

    budget: float | int | None
    error: float | int | None
    coins: AbstractCoins | None
    steps: int | None
    levels: tuple[int, ...] | None
    in_seconds: bool

    @property
    def only_with_coins(self) -> bool:
        """Whether a setting is given that only plans with coins have."""
        return not (self.coins is None and self.steps is None and self.levels is None)


def best_of(plans: Sequence[Plan | FittedPlan], *, for_error: bool) -> Plan | FittedPlan:
    """The cheapest plan for a target error, or otherwise the most accurate one.

    The error of fitted steps is the geometric mean over held-out pilots, which is measured and not dominated by a few
    trajectories. The error of a plan with coins is a predicted RMS error, which is at least as large as the geometric
    mean. A plan with coins is therefore chosen only if even its RMS error is smaller."""

    def error(plan: Plan | FittedPlan) -> float:
        return plan.typical_error if isinstance(plan, FittedPlan) else plan.error

    return min(plans, key=lambda plan: plan.cost if for_error else error(plan))


def best_plan(
    measured: Measurements, trials: Trials, fitted: FittedSteps | None, request: PlanRequest
) -> Plan | FittedPlan:
    """The more accurate plan within the budget, or the cheaper one for the target error. Raises `ValueError` if there
    is none, as `choose_plan` does."""

    def with_coins(**changed: float | None) -> Plan:
        settings = {**request._asdict(), "coins": request.coins or MIDPOINT, **changed}
        return _plan_with_coins(measured, trials, settings)

    if fitted is None or request.only_with_coins:
        return with_coins()
    try:
        ours = fitted.plan(budget=request.budget, error=request.error, in_seconds=request.in_seconds)
    except ValueError:
        # The budget or error is too small for the catalogue, or an argument is invalid: `choose_plan` explains the
        # latter.
        return with_coins()
    ours = dataclasses.replace(ours, finest_error=measured.finest_error)
    if _coins_are_far(measured, trials, ours, request):
        return ours
    try:
        other = with_coins()
    except ValueError:
        return ours
    return best_of([ours, other], for_error=request.error is not None)


def _coins_are_far(measured: Measurements, trials: Trials, ours: FittedPlan, request: PlanRequest) -> bool:
    """Whether one plan with coins shows that no such plan is better than these fitted steps: for a budget, because its
    error is much larger; for an error, because it misses that at the cost of the fitted steps. The search for the
    cheapest budget takes ten plans, and for a budget smaller ones are tried too."""
    one, bound = request._replace(coins=MIDPOINT), _FAR * ours.typical_error
    if request.error is not None:
        one, bound = one._replace(budget=ours.cost, error=None), request.error
    try:
        return choose_plan(measured, trials, **one._asdict()).error > bound
    except ValueError:
        return True


def _plan_with_coins(measured: Measurements, trials: Trials, settings: dict[str, Any]) -> Plan:
    """The plan of `choose_plan`, unless one for a smaller budget is clearly better: the firings of a level are whole
    numbers, and a larger budget may move them to worse times."""
    plan = choose_plan(measured, trials, **settings)
    if settings["budget"] is None:
        return plan
    for fraction in _SMALLER_BUDGETS:
        try:
            less = choose_plan(measured, trials, **{**settings, "budget": fraction * settings["budget"]})
        except ValueError:
            break
        if _BETTER * less.error < plan.error:
            plan = less
    return plan
