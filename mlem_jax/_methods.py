"""The multilevel solver of each order, and the one-level method that it is built on."""

from typing import Any, Literal

import diffrax
import jax.random as jr

from ._second_order import MLAB2
from ._solver import MLEM

Order = Literal[1, 2]
MULTILEVEL: dict[int, Any] = {1: MLEM, 2: MLAB2}
SINGLE = {1: "Euler", 2: "AB2"}


def check_order(order: int) -> None:
    """Raises `ValueError` for an order that no solver has."""
    if order not in MULTILEVEL:
        raise ValueError(
            f"order={order!r}: 1 for MLEM or 2 for MLAB2 is expected, the order of the solver's steps."
        )


def single_level_solver(order: int) -> diffrax.Euler | MLAB2:
    """The method for terms with one level."""
    return diffrax.Euler() if order == 1 else MLAB2([1.0], key=jr.key(0))
