"""Probabilities that are learned by stochastic gradients: the paper's second method (Jacot 2026).

The gradient is in `weight_gradient.py`, the optimisation problem in `problem.py`, the descent in `descent.py`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from .._checks import as_grid, as_key
from .._custom_types import Args, Numbers, RealScalarLike, Y
from .._probabilities import AbstractProbabilities, as_probabilities, TabulatedProbabilities
from .._term import as_terms_of_key, find_multilevel_term
from .descent import default_optimizer, iterate, shifted_to_budget
from .inputs import ALWAYS, check_settings, NAME, relative_costs, starting_point
from .problem import LOGIT_LIMIT, Problem


class LearningHistory(eqx.Module):
    """The course of [`mlem_jax.learn_probabilities`][], one entry per iteration, `(iterations,)` each.

    - `objective`: `error + mu * cost`; under a budget, `error`.
    - `error`: mean square, over the batch and the state's components, of the distance to Euler on the finest level. It
        is noisy, because the trajectories of one iteration share their coins.
    - `cost`: expected cost of a solve in evaluations of the finest level. It is exact.
    """

    objective: Float[Array, " iterations"]
    error: Float[Array, " iterations"]
    cost: Float[Array, " iterations"]


def learn_probabilities(
    terms: PyTree | Callable[[PRNGKeyArray], PyTree],
    ts: ArrayLike,
    y0s: Y,
    args: Args = None,
    *,
    key: PRNGKeyArray,
    start: Numbers | AbstractProbabilities | Callable[[RealScalarLike], Numbers],
    mu: float | None = None,
    budget: float | None = None,
    costs: Sequence[float] | None = None,
    knots: int = 4,
    iterations: int = 200,
    batch_size: int = 16,
    perturbations: int = 2,
    unbiased: bool = False,
    optimizer: Any | None = None,
) -> tuple[TabulatedProbabilities, LearningHistory]:
    r"""Probabilities for [`mlem_jax.IndependentCoins`][], learned by stochastic gradients (Jacot 2026).

    Minimises the mean square over trajectories and the state's components of $x_T - x_T^{ref}$, either plus `mu` times
    the expected cost or at a given expected cost. $x_T^{ref}$ is Euler on the finest level with the same steps and
    noise. The module `mlem_jax/_learning/weight_gradient.py` derives the gradient and names its source.

    An iteration evaluates, for each trajectory of its batch: the finest level in every step, for the reference; ML-EM
    with one forward derivative per perturbed weight; and the perturbed levels in the steps in which any trajectory has
    a perturbation. Memory does not grow with the number of steps, except for a table of the probabilities.

    **Arguments:**

    - `terms`: as for [`mlem_jax.MLEM`][]; or a function of a key that returns them, which gives each trajectory its own
        noise (otherwise all have the same).
    - `ts`: times of the steps, `(N + 1,)`, increasing or decreasing.
    - `y0s`: initial states with a leading axis; each batch is drawn from them with replacement.
    - `key`: for batches, coins, perturbations and noise; keyword-only.
    - `start`: the initial probabilities, anything that [`mlem_jax.MLEM`][] accepts. A level that starts at 1 at all
        knots stays at 1. If a level and the next one always fire, the first is never evaluated: the cost is
        discontinuous there, which no gradient shows. Therefore compare the starts `[1, 1, 0.1]` and `[1, 0.3, 0.1]`.
    - `mu`: the mean-square error that one evaluation of the finest level is worth. Give either this or `budget`.
    - `budget`: expected cost of a solve, in evaluations of the finest level.
    - `costs`: cost of one evaluation of each level, in any unit, cheapest first; by default those of the term.
    - `knots`: number of knots of the piecewise linear logits, evenly spaced over the steps.
    - `iterations`: iterations of the optimiser; `batch_size`: trajectories in each of them.
    - `perturbations`: number of weights of each learned level, in random steps, with respect to which each trajectory's
        end state is differentiated.
    - `unbiased`: use the derivative that is exact for every drift, not only for drifts affine in the state. It takes
        two solves per perturbation instead of one derivative.
    - `optimizer`: an `optax.GradientTransformation`; by default `optax.adam` with a learning rate that falls from 0.2
        to 0 along a cosine.

    **Returns:** the probabilities at all `ts` as a [`mlem_jax.TabulatedProbabilities`][], and a
    [`mlem_jax.LearningHistory`][]. Probabilities from 0.95 on are finally rounded up to 1, which lets the levels below
    rest; under a budget, what this saves goes to the other levels.

    Raises `ValueError` for terms without a MultilevelTerm, unless exactly one of `mu` and `budget` is given, for a
    budget that cannot be met, missing costs, probabilities that do not fit the levels or are all 1, and for times,
    sizes or a key that are not valid.
    """
    keys = jr.split(as_key(NAME, key), 3)
    make_terms = as_terms_of_key(terms)
    _, term = find_multilevel_term(make_terms(keys[0]), "learn_probabilities")
    ts = as_grid(NAME, ts)
    sizes = dict(iterations=iterations, batch_size=batch_size, perturbations=perturbations)
    check_settings(len(ts) - 1, mu, budget, knots=knots, **sizes)
    term.check_levels(ts[0], jtu.tree_map(lambda leaf: leaf[0], y0s), args)
    relative = relative_costs(term.costs if costs is None else costs, len(term.levels))
    times, logits, learned = starting_point(as_probabilities(start), ts, knots, len(term.levels))
    problem = Problem(make_terms, ts, times, args, relative, learned, perturbations, unbiased)
    goal = None if budget is None else _reachable(problem, logits, budget)
    if goal is not None:
        logits = shifted_to_budget(problem, logits, goal)
    optimiser: Any = default_optimizer(iterations) if optimizer is None else optimizer
    state = optimiser.init(logits)
    price = None if mu is None else jnp.asarray(mu, logits.dtype)
    size, history = jtu.tree_leaves(y0s)[0].shape[0], []
    for i in range(iterations):
        rows = jr.randint(jr.fold_in(keys[1], i), (batch_size,), 0, size)
        batch = jtu.tree_map(lambda leaf: leaf[rows], y0s)  # noqa: B023
        step_key = jr.fold_in(keys[2], i)
        logits, state, row = iterate(problem, optimiser, state, logits, batch, step_key, price, goal)
        history.append(row)
    problem = dataclasses.replace(problem, one=ALWAYS)
    if goal is not None:
        logits = shifted_to_budget(problem, logits, goal)
    values = jax.vmap(problem.probabilities(logits))(ts, jnp.zeros_like(ts))
    return TabulatedProbabilities(ts, values), LearningHistory(*map(jnp.stack, zip(*history, strict=True)))


def _reachable(problem: Problem, logits: Float[Array, "levels knots"], budget: float) -> Float[Array, ""]:
    """The budget as an array. Raises `ValueError` for one that no probabilities have."""
    cheapest, steps = float(problem.cost(jnp.full_like(logits, -LOGIT_LIMIT))), len(problem.ts) - 1
    if not cheapest < budget < steps:
        advice = "Take fewer steps." if budget <= cheapest else "Use diffrax.Euler(), or take more steps."
        raise ValueError(
            f"{NAME} was given budget={budget}; these levels cost from {cheapest:.3g} to {steps} finest-level "
            f"evaluations in {steps} steps. {advice}"
        )
    return jnp.asarray(budget, logits.dtype)
