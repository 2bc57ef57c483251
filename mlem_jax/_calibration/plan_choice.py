"""The choice between a plan with coins and fitted steps."""

import dataclasses
from typing import NamedTuple

from .._coins import AbstractCoins
from .fit_catalogue import FittedSteps
from .fit_plan import FittedPlan
from .measurements import Measurements
from .plan import Plan
from .planning import choose_plan, MIDPOINT
from .trials import Trials


class PlanRequest(NamedTuple):
    """What `Calibration.plan` was asked for; see there."""

    budget: float | int | None
    error: float | int | None
    coins: AbstractCoins | None
    steps: int | None
    levels: tuple[int, ...] | None
    in_seconds: bool

    @property
    def only_with_coins(self) -> bool:
        """Whether something was fixed that only plans with coins have."""
        return not (self.coins is None and self.steps is None and self.levels is None)


def best_plan(
    measured: Measurements, trials: Trials, fitted: FittedSteps | None, request: PlanRequest
) -> Plan | FittedPlan:
    """The plan of smaller error within the budget, or of smaller cost for the wanted error. Raises `ValueError` where
    there is none, as `choose_plan` does."""

    def with_coins() -> Plan:
        settings = request._asdict()
        return choose_plan(measured, trials, **{**settings, "coins": request.coins or MIDPOINT})

    if fitted is None or request.only_with_coins:
        return with_coins()
    try:
        ours = fitted.plan(budget=request.budget, error=request.error, in_seconds=request.in_seconds)
    except ValueError:
        # Too small a budget or error for the catalogue, or a wrong question, which the other kind of plan explains.
        return with_coins()
    try:
        other = with_coins()
    except ValueError:
        other = None
    ours = dataclasses.replace(ours, finest_error=measured.finest_error)
    if other is None:
        return ours
    better = other.error < ours.error if request.error is None else other.cost < ours.cost
    return other if better else ours
