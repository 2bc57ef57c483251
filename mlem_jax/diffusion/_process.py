"""Noising processes in the variables `(y, s)`, and adapters from network outputs to noise.

A process mixes an image `x_0` with noise, `x = alpha x_0 + sigma eps`. In `y = x / alpha` and
`s = sigma / alpha` the probability flow is `dy/ds = eps_hat` whatever the process, and plain Euler is
DDIM (Song, Meng & Ermon 2021); see `mlem_jax.diffusion.ProbabilityFlow`.
"""

import math
from collections.abc import Callable
from typing import get_args, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

Prediction = Literal["eps", "x0", "v"]


class VariancePreserving(eqx.Module):
    """The variance-preserving process, `alpha**2 + sigma**2 = 1`, with the cosine schedule.

    **Arguments:**

    - `s_min`, `s_max`: the range of `s = sigma / alpha` that is trained and sampled; at `s_max` the
        state is taken to be pure noise, at `s_min` it is taken to be clean.

    Raises `ValueError` unless `0 < s_min < s_max` and both are finite.
    """

    s_min: float = eqx.field(static=True, default=0.01)
    s_max: float = eqx.field(static=True, default=80.0)

    def __check_init__(self):
        if not 0 < self.s_min < self.s_max < math.inf:
            raise ValueError(
                "VariancePreserving needs 0 < s_min < s_max, both finite, and was given "
                f"s_min={self.s_min}, s_max={self.s_max}."
            )

    def alpha(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        """Scale of the image at `s`."""
        return jax.lax.rsqrt(1 + s**2)

    def sigma(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        """Standard deviation of the noise at `s`."""
        return s * jax.lax.rsqrt(1 + s**2)

    def draw_s(
        self, key: PRNGKeyArray, shape: tuple[int, ...], *, log_normal: tuple[float, float] | None = None
    ) -> Float[Array, "..."]:
        """Random noise levels for training: uniform in the cosine schedule's time,
        `s = tan(pi t / 2)` (Nichol & Dhariwal 2021), or with `log_normal=(mean, deviation)` normal in
        `log s` (Karras et al. 2022); both inside `[s_min, s_max]`."""
        if log_normal is not None:
            mean, deviation = log_normal
            low = (math.log(self.s_min) - mean) / deviation
            high = (math.log(self.s_max) - mean) / deviation
            return jnp.exp(mean + deviation * jr.truncated_normal(key, low, high, shape))
        low, high = jnp.arctan(self.s_min), jnp.arctan(self.s_max)
        return jnp.tan(jr.uniform(key, shape, minval=low, maxval=high))

    def grid(self, steps: int, *, spacing: str = "karras") -> Float[Array, " steps_plus_1"]:
        """The decreasing times `s_max = s_0 > ... > s_steps = s_min` of a sampling run, for
        `diffrax.StepTo`.

        `"karras"` is uniform in `s**(1/7)` (Karras et al. 2022), `"log"` in `log s`, `"cosine"` in the
        cosine schedule's time. Raises `ValueError` for another name or `steps < 1`.
        """
        if steps < 1:
            raise ValueError(f"A grid needs at least one step, and was asked for {steps}.")
        maps = {
            "karras": (lambda s: s ** (1 / 7), lambda u: u**7),
            "log": (jnp.log, jnp.exp),
            "cosine": (jnp.arctan, jnp.tan),
        }
        if spacing not in maps:
            raise ValueError(f"spacing={spacing!r} is not known; write one of {sorted(maps)}.")
        forward, backward = maps[spacing]
        ends = forward(jnp.array([self.s_max, self.s_min]))
        s = backward(jnp.linspace(ends[0], ends[1], steps + 1))
        # The ends are met exactly, so that diffeqsolve(t0=s[0], t1=s[-1]) and the grid agree.
        return s.at[0].set(self.s_max).at[-1].set(self.s_min)


class NoisePredictor(eqx.Module):
    """A network seen as a prediction of the noise, `(x, s) -> eps_hat`.

    **Arguments:**

    - `network`: a callable `(x, noise_level) -> array of x's shape` with
        `noise_level = log s`, such as [`mlem_jax.diffusion.UNet`][].
    - `process`: gives `alpha` and `sigma`.
    - `prediction`: what the network was trained to return: the noise `"eps"`, the clean image `"x0"`,
        or `"v"`, that is `alpha eps - sigma x_0` (Salimans & Ho 2022).

    Raises `ValueError` for another `prediction`.
    """

    network: Callable[[Array, Array], Array]
    process: VariancePreserving
    prediction: str = eqx.field(static=True, default="v")

    def __check_init__(self):
        if self.prediction not in get_args(Prediction):
            raise ValueError(
                f"prediction={self.prediction!r} is not known; write one of {get_args(Prediction)}."
            )

    def __call__(self, x: Float[Array, "..."], s: Float[Array, ""]) -> Float[Array, "..."]:
        alpha, sigma = self.process.alpha(s), self.process.sigma(s)
        out = self.network(x, jnp.log(s))
        if self.prediction == "eps":
            return out
        if self.prediction == "x0":
            return (x - alpha * out) / sigma
        return sigma * x + alpha * out


def training_target(
    prediction: Prediction,
    x0: Float[Array, "n h w c"],
    eps: Float[Array, "n h w c"],
    alpha: Float[Array, "n 1 1 1"],
    sigma: Float[Array, "n 1 1 1"],
) -> Float[Array, "n h w c"]:
    """What a network with this `prediction` should return for the noised image."""
    return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[prediction]
