"""The stochastic gradient descent of `learn_probabilities`, with a price of cost or at a given cost."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._bisection import bisect_compiled
from .._custom_types import Y
from .._extras import require
from .problem import LOGIT_LIMIT, Problem
from .weight_gradient import gradient_of_error

# Adam moves a logit by at most about the learning rate in each iteration. With 200 iterations and a cosine decay the
# moves add up to 20, enough to cross the whole range of logits; with 0.1 a distant start would not arrive.
_LEARNING_RATE = 0.2
# 30 halvings of a bracket of width 36 leave 3e-8, less than float32 resolves in a logit.
_HALVINGS = 30


def default_optimizer(iterations: int) -> Any:
    """`optax.adam` with a learning rate that falls to 0 along a cosine. Raises `ModuleNotFoundError` without optax."""
    require("learn_probabilities without an optimizer", "diffusion", "optax")
    import optax

    return optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, iterations))


def shifted_to_budget(
    problem: Problem, logits: Float[Array, "levels knots"], budget: Array
) -> Float[Array, "levels knots"]:
    """The logits plus one number, such that the cost is the budget."""
    width = jnp.asarray(2 * LOGIT_LIMIT, logits.dtype)
    _, shift = bisect_compiled(
        lambda shift: problem.cost(_limited(logits + shift)) < budget, -width, width, halvings=_HALVINGS
    )
    return _limited(logits + shift)


def _limited(logits: Array) -> Array:
    return jnp.clip(logits, -LOGIT_LIMIT, LOGIT_LIMIT)


@eqx.filter_jit
def iterate(
    problem: Problem,
    optimizer: Any,
    state: PyTree,
    logits: Float[Array, "levels knots"],
    y0s: Y,
    key: PRNGKeyArray,
    mu: Array | None,
    budget: Array | None,
) -> tuple[Array, PyTree, tuple[Array, Array, Array]]:
    """One iteration: the new logits, the optimiser's state, and objective, error and cost before the iteration."""
    errors, gradients = gradient_of_error(problem, logits, y0s, key)
    error, gradient = jnp.mean(errors), jnp.mean(gradients, axis=0)
    cost, cost_gradient = jax.value_and_grad(problem.cost)(logits)
    objective = error if mu is None else error + mu * cost
    if mu is None:
        # The Lagrange multiplier for which a common shift of all logits changes nothing: the descent then minimises
        # the error on the surface of equal cost. It is linear in the noisy gradient, hence unbiased too.
        mu = -jnp.sum(gradient) / jnp.sum(cost_gradient)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        updates, state = optimizer.update(gradient + mu * cost_gradient, state, logits)
        logits = _limited(logits + updates)
    if budget is not None:
        logits = shifted_to_budget(problem, logits, budget)
    return logits, state, (objective, error, cost)
