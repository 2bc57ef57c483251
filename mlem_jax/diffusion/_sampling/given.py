"""The inputs of a single sample besides its noise: a label, an image to start from, known pixels."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._predictor import NoisePredictor


class Given(NamedTuple):
    """The inputs of a sample, or with a leading axis those of all samples.

    - `label`: passed to the levels.
    - `origin`: the image from which a sample starts, noised.
    - `known`, `mask`: an image, and where its pixels are known.
    """

    label: PyTree = None
    origin: Any = None
    known: Any = None
    mask: Any = None

    def at(self, index: Any) -> "Given":
        """The inputs of one sample, or of several."""
        return jax.tree.map(lambda leaf: leaf[index], self)


class KnownPixels(eqx.Module):
    """A predictor with the true noise where pixels are known: along `y = x_0 + s eps` that is `(y - x_0) / s`.

    The known pixels of the probability flow then follow that line exactly, in steps of any method, and the network sees
    them noised as it did in training. Under the noise of the reverse SDE they follow the reverse SDE of a known clean
    value.
    """

    predictor: NoisePredictor

    def __call__(self, x: Float[Array, "..."], s: Float[Array, ""], given: Given) -> Float[Array, "..."]:
        true = (x / self.predictor.process.alpha(s) - given.known) / s
        return jnp.where(given.mask, true, self.predictor(x, s, given.label))


def knowing_pixels(predictor: NoisePredictor) -> NoisePredictor:
    """The predictor, which takes a `Given` as its label."""
    return NoisePredictor(KnownPixels(predictor), predictor.process, "eps", _itself)


def _itself(s: Array) -> Array:
    return s
