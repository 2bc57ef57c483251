"""Trial runs of the multilevel method on the pilots, which measure what the linear model neglects."""

import functools
from collections.abc import Sequence

import diffrax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from .._coins import AbstractCoins
from .._custom_types import Args, Y
from .._probabilities import TabulatedProbabilities
from .._term import MakeTerms
from .kept_parts import KeptParts
from .linear_model import error_of_counts, firing_counts, select, Selection
from .measurements import Measurements
from .pilots import (
    cosine,
    differences,
    LevelSubsetTerms,
    PilotInputs,
    Pilots,
    ReportProgress,
    root_mean,
    segmented_ends,
    squared_distances,
)
from .plan import Plan
from .planning import choose_plan
from .single_runs import SingleRuns
from .trials import Trials

# The range of budgets in which samplers of diffusion models are used, by factors of about 2.5. Between these budgets
# `Trials` interpolates.
TRIAL_BUDGETS = (2.0, 4.0, 10.0, 25.0)
# The levels of a plan with this budget are tried.
_TYPICAL_BUDGET = 10.0
# Keys of random coins for each budget. Prediction and measurement use the same ones, so their ratio is less noisy.
_SEEDS = 2
# The least number of steps in a trial run, over its budget. With fewer steps the finest level would fire in nearly all
# of them, and the trial would not show the error of the coins.
_LEAST_STEPS = 2


def run_trials(
    measured: Measurements,
    policies: Sequence[AbstractCoins],
    pilots: Pilots,
    single: SingleRuns,
    key: PRNGKeyArray,
    kept: KeptParts,
    report_progress: ReportProgress,
) -> Trials:
    """Solves the pilots with the plans of each policy for all trial budgets. Measures the distance to the finest level
    alone with the same steps, and compares it with the prediction of the linear model."""
    levels = _kept_levels(measured)
    subset = LevelSubsetTerms(pilots.make_terms, levels)
    rows: list[tuple[str, float, float, float, float, float]] = []
    for policy in policies:
        for budget in TRIAL_BUDGETS:
            report_progress(f"trial runs of {measured.method.name}, {policy.name}", 1)
            plan = _trial_plan(measured, budget, policy, levels)
            if plan is None:
                continue
            number = len(rows)
            run = functools.partial(
                _trial, measured, plan, subset, pilots, single, jr.fold_in(key, number), key
            )
            (numbers,) = kept.arrays(f"trial-{number + 1}", lambda run=run: [np.array(run())])
            rows.append((policy.name, budget, *numbers.tolist()))
    if not rows:
        return Trials.none()
    names, budgets, predictions, measurements, uncertainties, alignments = zip(*rows, strict=True)
    return Trials(
        coins=names,
        budget=np.array(budgets),
        predicted=np.array(predictions),
        measured=np.array(measurements),
        uncertainty=np.array(uncertainties),
        alignment=np.array(alignments),
    )


def _trial(
    measured: Measurements,
    plan: Plan,
    terms: LevelSubsetTerms,
    pilots: Pilots,
    single: SingleRuns,
    coin_key: PRNGKeyArray,
    key: PRNGKeyArray,
) -> tuple[float, float, float, float]:
    """The predicted error of a plan, its measured one with its relative standard error, and `Trials.alignment`."""
    total, steps, policy = measured.num_steps, len(plan.ts) - 1, plan.coins
    model = select(measured, Selection(terms.levels, total // steps))
    table = np.ones((total, measured.num_levels))
    table[:steps, model.pad :] = plan.table
    counts = firing_counts(policy, table, jr.split(coin_key, 1 if policy.deterministic else _SEEDS))
    finest = single.finest_ends[total // steps]
    segment = int(measured.single_steps[0])
    distances, alignment = [], 0.0
    for count in counts:
        fired = count[:steps, model.pad :]
        ends = [
            _solve(terms, plan, fired, segment, ys, pilots.args, inputs, key) for ys, inputs in pilots.batches
        ]
        distances.append(squared_distances(ends, finest))
        if policy.deterministic:
            alignment = cosine(differences(ends, finest), differences(finest, single.reference))
    predicted = error_of_counts(model, table, counts)
    return (float(predicted), *root_mean(np.mean(distances, axis=0)), alignment)


def _solve(
    make_terms: MakeTerms,
    plan: Plan,
    counts: Int[np.ndarray, "steps levels"],
    segment: int,
    ys: Y,
    args: Args,
    inputs: PilotInputs,
    key: PRNGKeyArray,
) -> Y:
    """End states of the plan with given firings."""

    def solver(part: slice) -> diffrax.AbstractSolver:
        # Data, so that all trial runs share one compiled solve.
        probabilities = TabulatedProbabilities(plan.grid[:-1][part], jnp.asarray(plan.table[part]))
        coins = _DrawnCoins(jnp.asarray(counts[part]))
        return plan.method.multilevel_solver(probabilities, coins=coins, key=key)

    return segmented_ends(plan.method, solver, make_terms, plan.grid, segment, ys, args, inputs)


def _trial_plan(
    measured: Measurements, budget: float, coins: AbstractCoins, levels: tuple[int, ...]
) -> Plan | None:
    """The plan of a trial run, with at least `_LEAST_STEPS * budget` steps; `None` if there is none."""
    enough = measured.single_steps[measured.single_steps >= _LEAST_STEPS * budget].tolist()
    for steps in (None, *enough[:1]):
        try:
            plan = choose_plan(
                measured, Trials.none(), budget=budget, coins=coins, levels=levels, steps=steps
            )
        except ValueError:
            return None
        if len(plan.ts) - 1 >= _LEAST_STEPS * budget:
            return plan
    return None


def _kept_levels(measured: Measurements) -> tuple[int, ...]:
    """The levels of a plan with a typical budget; all levels if that plan has a single one."""
    everything = tuple(range(measured.num_levels))
    try:
        levels = choose_plan(measured, Trials.none(), budget=_TYPICAL_BUDGET).levels
    except ValueError:
        return everything
    return levels if len(levels) > 1 else everything


class _DrawnCoins(AbstractCoins):
    """Coins with given firings."""

    counts: Int[Array, "steps levels"]

    def init(self, num_levels: int) -> None:
        return None

    def draw(self, p: Array, state: None, step: Array, key: PRNGKeyArray) -> tuple[Array, None]:
        return self.counts[step], state
