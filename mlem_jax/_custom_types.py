"""Type aliases."""

from collections.abc import Sequence
from typing import Any, Literal, TYPE_CHECKING

import numpy as np
from jaxtyping import Array, ArrayLike, PyTree, Real, Shaped

# What a user may write where an array is meant: an array, a number, or lists of numbers.
Numbers = ArrayLike | Sequence[Any]
# The variable in which MLAB2 extrapolates a drift linearly: the time or its logarithm.
TimeVariable = Literal["time", "log"]

if TYPE_CHECKING:
    RealScalarLike = int | float | Array | np.ndarray
    Y = Any
    Args = Any
else:
    RealScalarLike = Real[ArrayLike, ""]
    Y = PyTree[Shaped[ArrayLike, "..."]]
    Args = PyTree[Any]
