"""Trial runs of ML-EM on a calibration's pilots: what the linear model leaves out."""

import dataclasses
from collections.abc import Callable, Sequence

import diffrax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from .._coins import AbstractCoins
from .._custom_types import Args, Y
from .._probabilities.probabilities import TabulatedProbabilities
from .._solver.method import multilevel_solver
from .calibration import Calibration
from .linear_model import error_of_counts, is_deterministic, select, Selection, toss
from .pilots import MakeTerms, Own, Planned, root_mean, segmented_ends, squares
from .plan import coins_name, Plan
from .planning import make_plan

BUDGETS = (2.0, 4.0, 10.0, 25.0)
_SEEDS = 2


def try_coins(
    calibration: Calibration,
    coins: Sequence[AbstractCoins],
    make_terms: MakeTerms,
    batches: list[PyTree],
    args: Args,
    alone: dict[int, list[PyTree]],
    key: PRNGKeyArray,
    tell: Callable[[str, int], None],
) -> Calibration:
    """Runs ML-EM at a few budgets as a plan would, and compares its distance to the finest level alone with as
    many steps, whose end states are given for each stride, with the linear prediction."""
    total = len(calibration.ts) - 1
    levels = _kept_levels(calibration)
    kept = Planned(make_terms, levels)
    segment = int(calibration.single_steps[0])
    rows = []
    for policy in coins:
        seeds = 1 if is_deterministic(policy) else _SEEDS
        for budget in BUDGETS:
            tell(f"trial runs of ML-EM, {coins_name(policy)}", 1)
            plan = _plan(calibration, budget, policy, levels)
            if plan is None:
                continue
            steps = len(plan.ts) - 1
            kicks = select(calibration, Selection(levels, total // steps))
            table = np.ones((total, calibration.num_levels))
            table[:steps, kicks.pad :] = plan.table
            # Tossed beforehand: so a few seeds are enough to compare.
            counts = toss(policy, table, jr.split(jr.fold_in(key, len(rows)), seeds))
            apart = []
            for count in counts:
                fired = count[:steps, kicks.pad :]
                found = [_run(kept, plan, fired, segment, ys, args, own, key) for ys, own in batches]
                apart.append(squares(found, alone[total // steps]))
            predicted = error_of_counts(kicks, table, counts)
            rows.append((coins_name(policy), budget, predicted, *root_mean(np.mean(apart, axis=0))))
    if not rows:
        return calibration
    names, budgets, predicted, measured, spread = zip(*rows, strict=True)
    return dataclasses.replace(
        calibration,
        check_coins=names,
        check_budget=np.array(budgets),
        check_predicted=np.array(predicted),
        check_measured=np.array(measured),
        check_spread=np.array(spread),
    )


def _run(
    make_terms: MakeTerms,
    plan: Plan,
    counts: Int[np.ndarray, "steps levels"],
    segment: int,
    ys: Y,
    args: Args,
    own: Own,
    key: PRNGKeyArray,
) -> Y:
    """End states of ML-EM, in segments of so many steps: so one compiled solve serves all plans."""

    def solver(part: slice) -> diffrax.AbstractSolver:
        probabilities = TabulatedProbabilities(plan.ts[:-1][part], plan.table[part])
        coins = _Tossed(jnp.asarray(counts[part]))
        return multilevel_solver(plan.order, plan.clock, probabilities, coins=coins, key=key)

    return segmented_ends(solver, make_terms, plan.grid, segment, ys, args, own)


def _plan(
    calibration: Calibration, budget: float, coins: AbstractCoins, levels: tuple[int, ...]
) -> Plan | None:
    """The plan to try, with at least twice as many steps as evaluations, lest the finest level run in nearly all of
    them and a trial show nothing of its coins; `None` if there is none."""
    enough = calibration.single_steps[calibration.single_steps >= 2 * budget].tolist()
    for steps in (None, *enough[:1]):
        try:
            plan = make_plan(calibration, budget=budget, coins=coins, levels=levels, steps=steps)
        except ValueError:
            return None
        if len(plan.ts) - 1 >= 2 * budget:
            return plan
    return None


def _kept_levels(calibration: Calibration) -> tuple[int, ...]:
    """The levels that a plan of middling budget keeps; all of them where it would use one alone."""
    everything = tuple(range(calibration.num_levels))
    try:
        levels = make_plan(calibration, budget=BUDGETS[2]).levels
    except ValueError:
        return everything
    return levels if len(levels) > 1 else everything


class _Tossed(AbstractCoins):
    """Coins that have been tossed already."""

    counts: Int[Array, "steps levels"]

    def init(self, num_levels: int) -> None:
        return None

    def toss(self, p: Array, state: None, step: Array, key: PRNGKeyArray) -> tuple[Array, None]:
        return self.counts[step], state
