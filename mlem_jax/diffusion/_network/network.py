"""What a level of a ladder is, and how it is called."""

from abc import abstractmethod

import equinox as eqx
from jaxtyping import Array, ArrayLike, Float


class AbstractNetwork(eqx.Module):
    """What the levels of a ladder are: `(x, noise_level, label) -> array of x's shape`.

    - `shape`: `(height, width, channels)` of one image.
    - `classes`: how many labels there are, or `None` for a network that takes no label.
    """

    shape: eqx.AbstractVar[tuple[int, int, int]]
    classes: eqx.AbstractVar[int | None]

    @abstractmethod
    def __call__(
        self, x: Float[Array, "*n h w c"], noise_level: Float[Array, "*m"], label: ArrayLike | None = None
    ) -> Float[Array, "*n h w c"]:
        """One image `(h, w, c)` with a scalar `noise_level` and `label`, or a batch `(n, h, w, c)` with a scalar
        or `(n,)` of each. `noise_level` is the natural logarithm of `sigma / alpha`; `label` an integer, from
        0 to `classes - 1`, or `classes` itself for "no label".

        Raises `ValueError` for other shapes, a label that is missing, out of range or of no use. A label that is
        out of range inside compiled code, where nothing can be raised, makes the output NaN.
        """
