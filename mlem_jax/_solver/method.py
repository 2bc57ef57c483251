"""The multilevel solver of each order, and the one-level method that it is built on."""

from typing import Any, get_args, Literal

import diffrax
import jax.random as jr

from .._custom_types import Clock
from .._probabilities.probabilities import AbstractProbabilities
from .mlab2 import MLAB2
from .mlem import MLEM

Order = Literal[1, 2]
SINGLE = {1: "Euler", 2: "AB2"}


def check_method(order: int, clock: str) -> None:
    """Raises `ValueError` for an order or a clock that no solver has."""
    if order not in get_args(Order):
        raise ValueError(
            f"order={order!r}: 1 for MLEM or 2 for MLAB2 is expected, the order of the solver's steps."
        )
    if clock not in get_args(Clock) or (order == 1 and clock != "time"):
        raise ValueError(
            f"clock={clock!r} with order={order}: 'time' is expected, or with order=2 also 'log', for drifts that "
            "change by the factor of the time."
        )


def multilevel_solver(
    order: int, clock: Clock, probabilities: AbstractProbabilities, **settings: Any
) -> MLEM | MLAB2:
    """The multilevel solver of an order."""
    if order == 1:
        return MLEM(probabilities, **settings)
    return MLAB2(probabilities, clock=clock, **settings)


def single_level_solver(order: int, clock: Clock) -> diffrax.Euler | MLAB2:
    """The method for terms with one level."""
    return diffrax.Euler() if order == 1 else MLAB2([1.0], clock=clock, key=jr.key(0))
