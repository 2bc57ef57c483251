"""Conversion of what a user may pass to probabilities."""

from collections.abc import Callable

from .._custom_types import Numbers, RealScalarLike
from .base import AbstractProbabilities, check_values
from .constant import ConstantProbabilities, FunctionProbabilities
from .tabulated import TabulatedProbabilities


def as_probabilities(
    probabilities: "Numbers | AbstractProbabilities | Callable[[RealScalarLike], Numbers]",
) -> AbstractProbabilities:
    """What [`mlem_jax.MLEM`][] accepts, as probabilities. Raises `ValueError` for values outside `(0, 1]`."""
    if isinstance(probabilities, TabulatedProbabilities):
        # A table may also hold rates, which may exceed 1, so its own constructor does not check for probabilities.
        check_values(probabilities.values, name="TabulatedProbabilities values", limit=1.0)
    if isinstance(probabilities, AbstractProbabilities):
        return probabilities
    if callable(probabilities):
        return FunctionProbabilities(probabilities)
    return ConstantProbabilities(probabilities)
