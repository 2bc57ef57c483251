"""Probabilities that are learned by stochastic gradients: the paper's second way (Jacot 2026).

The gradient is `_weight_gradient.py`'s; here is what is descended, and how.
"""

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
import optax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from ._probabilities import AbstractProbabilities, as_probabilities, TabulatedProbabilities
from ._term import find_multilevel_term
from ._types import Args, Numbers, RealScalarLike, Y
from ._weight_gradient import gradient_of_error, Problem

# Logits stay where float32 still resolves 1 - p; what has come this close to always firing is rounded to it, since
# only levels that always fire let their neighbours below rest.
_LOGIT_LIMIT = 9.0
_ALWAYS = 0.99


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
    optimizer: optax.GradientTransformation,
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
    updates, state = optimizer.update(gradient + mu * cost_gradient, state, logits)
    logits = _limited(jnp.asarray(optax.apply_updates(logits, updates)))
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
    directions: int | None = None,
    unbiased: bool = False,
    optimizer: optax.GradientTransformation | None = None,
) -> tuple[TabulatedProbabilities, LearningHistory]:
    r"""Probabilities for [`mlem_jax.IndependentCoins`][], learned by stochastic gradients (Jacot 2026).

    Minimises the mean square over trajectories and the state's components of $x_T - x_T^{ref}$, plus `mu` times the
    expected cost, or at a given cost. $x_T^{ref}$ is Euler on the finest level with the same steps and noise.
    The gradient's formula and its source are at the top of `mlem_jax/_weight_gradient.py`.

    An iteration runs, for each trajectory of its batch, the finest level in every step for the reference, all levels
    in every step for what their increments do, and ML-EM with `directions` forward derivatives. Memory does not
    grow with the number of steps.

    **Arguments:**

    - `terms`: as for [`mlem_jax.MLEM`][]; or a function of a key that returns them, to give each trajectory noise
        of its own (otherwise all see the same).
    - `ts`: times of the steps, `(N + 1,)`, increasing or decreasing.
    - `y0s`: initial states with a leading axis; each batch is drawn from them with replacement.
    - `key`: for batches, coins, directions and noise; keyword-only.
    - `start`: where to start, anything that [`mlem_jax.MLEM`][] takes as probabilities. A level that starts at 1 at all
        knots keeps it: the levels that always fire are the user's choice.
    - `mu`: mean-square error that one evaluation of the finest level is worth. Either this or `budget`.
    - `budget`: expected cost of a solve, in evaluations of the finest level.
    - `costs`: cost of one evaluation of each level, in any unit; by default those of the term.
    - `knots`: how many times the logits are linear between, spread evenly over the steps.
    - `iterations`, `batch_size`: of the optimiser, and trajectories in each of them.
    - `directions`: how many (level, knot) pairs each trajectory treats; all by default. Fewer are cheaper and noisier.
    - `unbiased`: also sample what the formula leaves out for drifts that are not affine in the state. Two more solves
        per trajectory, and noisier.
    - `optimizer`: by default `optax.adam` with a step that falls from 0.2 to 0 along a cosine.

    **Returns:** the probabilities at all `ts` as a [`mlem_jax.TabulatedProbabilities`][] (those from 0.99 on rounded
    to 1, which lets the levels below rest and moves the cost a little), and a [`mlem_jax.LearningHistory`][].

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
    _check(ts, mu, budget, knots, iterations, batch_size)
    term.check_levels(ts[0], jtu.tree_map(lambda leaf: leaf[0], y0s), args)
    relative = _costs(term.costs if costs is None else costs, len(term.levels))
    times, logits, learned = _start(as_probabilities(start), ts, knots, len(term.levels))
    pairs = sum(learned) * knots
    directions = pairs if directions is None else directions
    if not 1 <= directions <= pairs:
        raise ValueError(
            f"learn_probabilities was given directions={directions}; there are {pairs} pairs of a learned level and a "
            f"knot, so a number from 1 to {pairs} is expected, or None for all."
        )
    problem = Problem(make_terms, ts, times, args, relative, learned, directions, unbiased)
    goal = None if budget is None else jnp.asarray(budget, logits.dtype)
    if goal is not None:
        ends = [float(problem.cost(jnp.full_like(logits, s * _LOGIT_LIMIT))) for s in (-1, 1)]
        if not ends[0] < float(goal) < ends[1]:
            raise ValueError(
                f"learn_probabilities was given budget={budget}; with these levels and steps the cost lies between "
                f"{ends[0]:.3g} and {ends[1]:.3g} finest-level evaluations. Take fewer or more steps."
            )
        logits = _shifted_to_budget(problem, logits, goal)
    if optimizer is None:
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
    values = jax.vmap(problem.probabilities(logits))(ts, jnp.zeros_like(ts))
    values = jnp.where(values >= _ALWAYS, jnp.ones_like(values), values)
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


def _check(
    ts: Array, mu: float | None, budget: float | None, knots: int, iterations: int, batch_size: int
) -> None:
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
    sizes = {"knots": (knots, 2), "iterations": (iterations, 1), "batch_size": (batch_size, 1)}
    for name, (value, least) in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"learn_probabilities was given {name}={value!r}; a whole number from {least} on is expected."
            )
    if knots > len(steps) + 1:
        raise ValueError(
            f"learn_probabilities was given knots={knots} for {len(steps)} steps; take at most {len(steps) + 1}."
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
