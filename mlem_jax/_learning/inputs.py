"""The arguments of `learn_probabilities`, checked and converted."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import as_costs, as_int, as_positive
from .._probabilities import AbstractProbabilities
from .problem import LOGIT_LIMIT

NAME = "learn_probabilities"
# Learned probabilities from here on are rounded up to 1. A sigmoid never reaches 1, and only a probability of exactly 1
# lets the levels below rest. Rounding makes a level at most 5% more expensive (10% from 0.9 on, 2.5% from 0.975 on).
ALWAYS = 0.95


class Start(NamedTuple):
    """Increasing times of the knots, the logits of all levels there, and which levels are learned."""

    knots: Float[Array, " knots"]
    logits: Float[Array, "levels knots"]
    learned: tuple[bool, ...]


def starting_point(start: AbstractProbabilities, ts: Array, knots: int, num_levels: int) -> Start:
    """The starting point of the optimisation. Raises `ValueError` for probabilities that do not fit the levels, lie
    outside `(0, 1]` or are all 1."""
    index = np.round(np.linspace(0, len(ts) - 1, knots)).astype(int)
    lengths = jnp.abs(jnp.diff(ts))[np.minimum(index, len(ts) - 2)]
    p = np.asarray(jax.vmap(start)(ts[index], lengths), float)
    if p.shape[1] != num_levels:
        raise ValueError(
            f"{NAME} was given start with {p.shape[1]} probabilities for {num_levels} levels; one per level is "
            "expected, cheapest level first."
        )
    if not np.all((p > 0) & (p <= 1)):
        raise ValueError(
            f"{NAME} was given start with entries outside (0, 1]. For rates per unit time write mlem_jax.Rates(...)."
        )
    learned = tuple(bool(row.min() < 1) for row in p.T)
    if not any(learned):
        raise ValueError(
            f"{NAME} was given start=1 for all levels, and a level that always fires is not learned. Start lower, for "
            "example from [1.0, 0.3, 0.1]."
        )
    p = np.clip(p, 1 / (1 + math.exp(LOGIT_LIMIT)), ALWAYS)
    order = np.argsort(np.asarray(ts[index]))
    return Start(ts[index][order], jnp.asarray(np.log(p / (1 - p)).T[:, order], ts.dtype), learned)


def check_settings(steps: int, mu: float | None, budget: float | None, *, knots: int, **sizes: int) -> None:
    """Raises `ValueError` unless exactly one of `mu` and `budget` is given and all numbers are in range."""
    if (mu is None) == (budget is None):
        raise ValueError(
            f"{NAME} was given mu={mu} and budget={budget}; exactly one is expected: budget=12 for a cost of 12 "
            "finest-level evaluations, or mu for the mean-square error that one of them is worth."
        )
    for name, value in (("mu", mu), ("budget", budget)):
        if value is not None:
            as_positive(NAME, value, name=name)
    for name, value in sizes.items():
        as_int(NAME, value, name=name)
    if as_int(NAME, knots, name="knots", least=2) > steps + 1:
        raise ValueError(
            f"{NAME} was given knots={knots} for {steps} steps; write at most knots={steps + 1}."
        )


def relative_costs(costs: Sequence[float] | None, num_levels: int) -> Float[Array, " levels"]:
    """The levels' costs in evaluations of the finest one. Raises `ValueError` unless there is one positive number per
    level, in increasing order."""
    if costs is None:
        raise ValueError(
            f"{NAME} needs the levels' costs and MultilevelTerm has none. Write MultilevelTerm(..., costs=(...)) or "
            f"{NAME}(..., costs=(...)), in any unit."
        )
    array = as_costs(NAME, costs, num_levels)
    return jnp.asarray(array / array[-1], jnp.result_type(float))
