"""A direct path from a network's input to its output, for networks too narrow to represent an image."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .linear import Linear


def needs_input_skip(width: int, channels: int, fold: int) -> bool:
    """Whether a network of `width` channels per place, of which each stands for `fold` x `fold` pixels, cannot
    represent an image without an [`mlem_jax.diffusion.InputSkip`][].

    The last layer maps a place's `width` channels to `channels * fold**2` numbers. The RMS norm before it removes
    one degree of freedom, their common scale. With `width <= channels * fold**2` the output stays in
    a proper subspace, and the rest of the picture keeps the noise that the sampler started from.
    """
    return width <= channels * fold**2


class InputSkip(eqx.Module):
    """Adds to a network's output its input, filtered with gains that depend on the noise level: one gain for each
    channel and each scale of the squares that are folded into channels.

    The scales are the means over squares of growing sides, each a divisor of the next, from single pixels to `fold` x
    `fold` pixels. The filter is symmetric, and what changes between two neighbouring sides is scaled by the sum of the
    gains up to the smaller one; so its rank is full unless such a sum is 0, whatever the network beside it can do.

    Why scales, and not a gain per pixel: the best linear prediction of `v = alpha eps - sigma x_0` multiplies
    a component of the image of standard deviation `c` by `alpha sigma (1 - c**2) / (alpha**2 c**2 + sigma**2)`, at
    low noise about `1 / s` where `c < s` and about `s / c**2` where `c > s`. In pictures `c` hardly depends on the
    pixel but falls by a factor of 2 to 3 with each halving of the scale. The network adds what is not linear; the
    components that it is too narrow for are left to the filter.

    Gains are linear in the network's embedding and 0 at the start, as all outputs of a network nearly are: for every
    prediction of the library the first loss is then the mean square of the target. A mean over squares costs an
    addition per pixel, so the filter takes about 7 FLOPs per pixel and channel.

    **Arguments:** `channels` of the image; `fold`, side of the squares in pixels; `embedding`, size of the embedding;
    `key`: keyword-only random key.
    """

    gains: Linear
    # How many means of one scale, per side, make one of the next.
    factors: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, channels: int, fold: int, embedding: int, *, key: PRNGKeyArray):
        self.factors = _prime_factors(fold)
        self.gains = Linear(embedding, channels * (1 + len(self.factors)), scale=0.0, key=key)

    def __call__(self, x: Float[Array, "n h w c"], embedding: Float[Array, "m e"]) -> Float[Array, "n h w c"]:
        gains = self.gains(embedding)[:, None, None, :]
        *finer, coarsest = jnp.split(gains, 1 + len(self.factors), axis=-1)
        means = [x]
        for factor in self.factors:
            n, h, w, c = means[-1].shape
            means.append(means[-1].reshape(n, h // factor, factor, w // factor, factor, c).mean((2, 4)))
        out = coarsest * means.pop()
        for gain, factor in zip(reversed(finer), reversed(self.factors), strict=True):
            out = gain * means.pop() + out.repeat(factor, axis=1).repeat(factor, axis=2)
        return out


def _prime_factors(number: int) -> tuple[int, ...]:
    """In growing order, so that `(2, 2, 2)` stands for squares of 2, 4 and 8."""
    factors = []
    divisor = 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return tuple(factors)
