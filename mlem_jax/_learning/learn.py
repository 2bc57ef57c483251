"""Probabilities that are learned by stochastic gradients: the paper's second way (Jacot 2026).

The gradient is `_weight_gradient.py`'s; here is what is descended, and how.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from .._custom_types import Args, Numbers, RealScalarLike, Y
from .._extras import require
from .._probabilities import AbstractProbabilities, as_probabilities, TabulatedProbabilities
from .._term import find_multilevel_term
from .weight_gradient import gradient_of_error, Problem

# Logits stay where float32 still resolves 1 - p. A sigmoid never arrives at 1, where the levels below may rest; so what
# has come this close is rounded up in the end.
_LOGIT_LIMIT = 9.0
_ALWAYS = 0.95


class LearningHistory(eqx.Module):
    """What was seen while probabilities were learned, one entry per iteration, `(iterations,)` each.

    - `objective`: `error + mu * cost`; under a budget, `error`.
    - `error`: mean square over the batch and the state's components of the distance to the finest level's Euler.
        Noisy: the trajectories of one iteration share their coins.
    - `cost`: expected evaluations per solve, in units of the finest level. Exact.
    """

    objective: Float[Array, " iterations"]
    error: Float[Array, " iterations"]
    cost: Float[Array, " iterations"]


def _shifted_to_budget(
    problem: Problem, logits: Float[Array, "levels knots"], budget: Array
) -> Float[Array, "levels knots"]:
    """The logits, all raised or lowered alike until the cost is the budget."""

    def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        cheap = problem.cost(_limited(logits + middle)) < budget
        return jnp.where(cheap, middle, low), jnp.where(cheap, high, middle)

    width = jnp.asarray(2 * _LOGIT_LIMIT, logits.dtype)
    _, high = jax.lax.fori_loop(0, 30, halve, (-width, width))
    return _limited(logits + high)


def _limited(logits: Array) -> Array:
    return jnp.clip(logits, -_LOGIT_LIMIT, _LOGIT_LIMIT)


@eqx.filter_jit
def _iterate(
    problem: Problem,
    optimizer: Any,
    state: PyTree,
    logits: Float[Array, "levels knots"],
    y0s: Y,
    key: PRNGKeyArray,
    mu: Array | None,
    budget: Array | None,
) -> tuple[Array, PyTree, tuple[Array, Array, Array]]:
    errors, gradients = gradient_of_error(problem, logits, y0s, key)
    error, gradient = jnp.mean(errors), jnp.mean(gradients, axis=0)
    cost, cost_gradient = jax.value_and_grad(problem.cost)(logits)
    objective = error if mu is None else error + mu * cost
    if mu is None:
        # The multiplier under which raising all logits alike changes nothing: what is then descended is the error
        # on the surface of equal cost. Linear in the noisy gradient, so unbiased too.
        mu = -jnp.sum(gradient) / jnp.sum(cost_gradient)
    with jax.numpy_dtype_promotion("standard"):  # optax does not do without
        updates, state = optimizer.update(gradient + mu * cost_gradient, state, logits)
        logits = _limited(logits + updates)
    if budget is not None:
        logits = _shifted_to_budget(problem, logits, budget)
    return logits, state, (objective, error, cost)


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
    kicks: int = 2,
    unbiased: bool = False,
    optimizer: Any | None = None,
) -> tuple[TabulatedProbabilities, LearningHistory]:
    r"""Probabilities for [`mlem_jax.IndependentCoins`][], learned by stochastic gradients (Jacot 2026).

    Minimises the mean square over trajectories and the state's components of $x_T - x_T^{ref}$, plus `mu` times the
    expected cost, or at a given cost. $x_T^{ref}$ is Euler on the finest level with the same steps and noise.
    The gradient's formula and its source are at the top of `mlem_jax/_weight_gradient.py`.

    An iteration runs, for each trajectory of its batch, the finest level in every step for the reference, ML-EM with
    one forward derivative per kick, and the levels that are kicked, in steps where any trajectory has a kick. Memory
    does not grow with the number of steps, but for a table of the probabilities.

    **Arguments:**

    - `terms`: as for [`mlem_jax.MLEM`][]; or a function of a key that returns them, to give each trajectory noise
        of its own (otherwise all see the same).
    - `ts`: times of the steps, `(N + 1,)`, increasing or decreasing.
    - `y0s`: initial states with a leading axis; each batch is drawn from them with replacement.
    - `key`: for batches, coins, directions and noise; keyword-only.
    - `start`: where to start, anything that [`mlem_jax.MLEM`][] takes as probabilities. A level that starts at 1 at all
        knots keeps it. Where a level and the next one always fire, the first is never evaluated: the cost is
        discontinuous there, and gradients do not see it. Compare starts `[1, 1, 0.1]` and `[1, 0.3, 0.1]`.
    - `mu`: mean-square error that one evaluation of the finest level is worth. Either this or `budget`.
    - `budget`: expected cost of a solve, in evaluations of the finest level.
    - `costs`: cost of one evaluation of each level, in any unit; by default those of the term.
    - `knots`: number of knots of the piecewise linear logits, spread evenly over the steps.
    - `iterations`, `batch_size`: of the optimiser, and trajectories in each of them.
    - `kicks`: how many coins of each learned level a trajectory differentiates its end state in.
    - `unbiased`: take the derivative that is exact for every drift, not only for those affine in the state. Two solves
        per kick instead of one derivative.
    - `optimizer`: an `optax.GradientTransformation`; by default `optax.adam` with a step that falls from 0.2 to 0 along
        a cosine.

    **Returns:** the probabilities at all `ts` as a [`mlem_jax.TabulatedProbabilities`][], and a
    [`mlem_jax.LearningHistory`][]. Probabilities from 0.95 on are rounded to 1 in the end, which lets the levels below
    rest; under a budget the others then get what that saves.

    Raises `ValueError` for terms without a MultilevelTerm; not exactly one of `mu` and `budget`; a budget that cannot
    be met; missing costs; probabilities that do not fit the levels or are all 1; bad times and sizes.
    """
    if isinstance(key, int):
        raise ValueError(f"learn_probabilities was given key={key}; write key=jax.random.key({key}).")
    keys = jr.split(key, 3)
    make_terms: Callable[[PRNGKeyArray], PyTree] = _Same(terms)
    if callable(terms) and not isinstance(terms, diffrax.AbstractTerm):
        make_terms = terms
    _, term = find_multilevel_term(make_terms(keys[0]))
    ts = jnp.asarray(ts, jnp.result_type(float))
    _check(ts, mu, budget, knots=knots, iterations=iterations, batch_size=batch_size, kicks=kicks)
    term.check_levels(ts[0], jtu.tree_map(lambda leaf: leaf[0], y0s), args)
    relative = _costs(term.costs if costs is None else costs, len(term.levels))
    times, logits, learned = _start(as_probabilities(start), ts, knots, len(term.levels))
    problem = Problem(make_terms, ts, times, args, relative, learned, kicks, unbiased)
    goal = None if budget is None else jnp.asarray(budget, logits.dtype)
    if goal is not None:
        cheapest = float(problem.cost(jnp.full_like(logits, -_LOGIT_LIMIT)))
        if not cheapest < float(goal) < len(ts) - 1:
            raise ValueError(
                f"learn_probabilities was given budget={budget}; these levels cost from {cheapest:.3g} to "
                f"{len(ts) - 1} finest-level evaluations in {len(ts) - 1} steps. "
                + ("Take fewer steps." if goal <= cheapest else "Use diffrax.Euler(), or take more steps.")
            )
        logits = _shifted_to_budget(problem, logits, goal)
    if optimizer is None:
        require("learn_probabilities without an optimizer", "diffusion", "optax")
        import optax

        optimizer = optax.adam(optax.cosine_decay_schedule(0.2, iterations))
    state = optimizer.init(logits)
    weight = None if mu is None else jnp.asarray(mu, logits.dtype)
    size, seen = jtu.tree_leaves(y0s)[0].shape[0], []
    for i in range(iterations):
        rows = jr.randint(jr.fold_in(keys[1], i), (batch_size,), 0, size)
        drawn = jtu.tree_map(lambda leaf: leaf[rows], y0s)  # noqa: B023
        step_key = jr.fold_in(keys[2], i)
        logits, state, now = _iterate(problem, optimizer, state, logits, drawn, step_key, weight, goal)
        seen.append(now)
    problem = dataclasses.replace(problem, one=_ALWAYS)
    if goal is not None:
        logits = _shifted_to_budget(problem, logits, goal)
    values = jax.vmap(problem.probabilities(logits))(ts, jnp.zeros_like(ts))
    return TabulatedProbabilities(ts, values), LearningHistory(*map(jnp.stack, zip(*seen, strict=True)))


class _Same(eqx.Module):
    """The same terms for every trajectory. A module, so that its arrays are arguments of compiled code."""

    terms: PyTree

    def __call__(self, key: PRNGKeyArray) -> PyTree:
        return self.terms


def _start(
    start: AbstractProbabilities, ts: Array, knots: int, num_levels: int
) -> tuple[Float[Array, " knots"], Float[Array, "levels knots"], tuple[bool, ...]]:
    """Times of the knots (increasing), the logits there, and which levels are learned."""
    index = np.round(np.linspace(0, len(ts) - 1, knots)).astype(int)
    lengths = jnp.abs(jnp.diff(ts))[np.minimum(index, len(ts) - 2)]
    p = np.asarray(jax.vmap(start)(ts[index], lengths), float)
    if p.shape[1] != num_levels:
        raise ValueError(
            f"learn_probabilities was given start with {p.shape[1]} probabilities for {num_levels} levels; one per "
            f"level is expected, cheapest first."
        )
    if not np.all((p > 0) & (p <= 1)):
        raise ValueError(
            "learn_probabilities was given start with entries outside (0, 1]. For rates per unit time write "
            "mlem_jax.Rates(...)."
        )
    learned = tuple(bool(row.min() < 1) for row in p.T)
    if not any(learned):
        raise ValueError(
            "learn_probabilities was given start=1 for all levels, and levels that always fire are not learned. Start "
            "lower, for example from [1.0, 0.3, 0.1]."
        )
    p = np.clip(p, 1 / (1 + math.exp(_LOGIT_LIMIT)), 0.95)
    order = np.argsort(np.asarray(ts[index]))
    return ts[index][order], jnp.asarray(np.log(p / (1 - p)).T[:, order], ts.dtype), learned


def _check(ts: Array, mu: float | None, budget: float | None, **sizes: int) -> None:
    steps = np.diff(np.asarray(ts, float)) if ts.ndim == 1 else np.zeros(0)
    if len(steps) == 0 or not (np.all(steps > 0) or np.all(steps < 0)):
        raise ValueError(
            f"learn_probabilities was given times of shape {ts.shape}; a strictly increasing or decreasing sequence "
            "(N + 1,) is expected, for example jnp.linspace(t0, t1, 65)."
        )
    if (mu is None) == (budget is None):
        raise ValueError(
            f"learn_probabilities was given mu={mu} and budget={budget}; exactly one is expected: budget=12 for a cost "
            "of 12 finest-level evaluations, or mu for the mean-square error that one of them is worth."
        )
    for name, value in (("mu", mu), ("budget", budget)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"learn_probabilities was given {name}={value}; a positive number is expected.")
    for name, value in sizes.items():
        least = 2 if name == "knots" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"learn_probabilities was given {name}={value!r}; a whole number from {least} on is expected."
            )
    if sizes["knots"] > len(steps) + 1:
        raise ValueError(
            f"learn_probabilities was given knots={sizes['knots']} for {len(steps)} steps; write at most "
            f"knots={len(steps) + 1}."
        )


def _costs(costs: Sequence[float] | None, num_levels: int) -> Float[Array, " levels"]:
    if costs is None:
        raise ValueError(
            "learn_probabilities needs the levels' costs and MultilevelTerm has none. Write MultilevelTerm(..., "
            "costs=(...)) or learn_probabilities(..., costs=(...)), in any unit."
        )
    array = np.asarray(costs, float)
    if array.shape != (num_levels,) or not np.all((array > 0) & np.isfinite(array)):
        raise ValueError(
            f"learn_probabilities was given costs={costs} for {num_levels} levels; one positive number per level is "
            "expected, cheapest level first."
        )
    return jnp.asarray(array / array[-1], jnp.result_type(float))
