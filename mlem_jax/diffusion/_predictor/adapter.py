"""From what a network returns to the noise in its input: one adapter for all processes and predictions.

    flow = NoisePredictor(network, FlowMatching(), "velocity", conditioning="time")
    ddpm = NoisePredictor(network, VariancePreserving(betas=(0.1, 20.0)), "eps", conditioning="time")
    edm = NoisePredictor(Preconditioned(network), EDM(), "x0", conditioning="sigma")
    level = ProbabilityFlow(flow)  # (s, y, args) -> dy/ds

A network is a callable `(x, conditioning)`, or `(x, conditioning, label)`. One with another signature or array layout
is wrapped with `eqx.Partial`, which keeps its parameters visible to JAX:

    eqx.Partial(model.apply, parameters)  # Flax
    eqx.Partial(lambda network, x, t: jnp.moveaxis(network(t, jnp.moveaxis(x, -1, 0)), 0, -1), network)  # (t, x), CHW
"""

from collections.abc import Callable
from typing import Any, get_args, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._process import AbstractProcess

Prediction = Literal["eps", "x0", "v", "score", "velocity"]
Conditioning = Literal["log_s", "log_snr", "sigma", "time"]
# With which the networks of a ladder can be trained.
TrainedPrediction = Literal["eps", "x0", "v", "velocity"]


class NoisePredictor(eqx.Module):
    """A network seen as a prediction of the noise, `(x, s, label) -> eps_hat`.

    **Arguments:**

    - `network`: a callable `(x, conditioning) -> array of x's shape`, such as
        [`mlem_jax.diffusion.UNet`][]; or `(x, conditioning, label)`, see `__call__`. `conditioning` is
        a scalar. The layout of `x` is the network's; nothing here depends on it.
    - `process`: the one it was trained under.
    - `prediction`: what it was trained to return for `x = alpha x_0 + sigma eps`:
        - `"eps"`, the noise, or `"x0"`, the clean image;
        - `"v"`, that is `alpha eps - sigma x_0` (Salimans & Ho 2022);
        - `"score"`, the gradient of the log-density of `x`, `-eps / sigma`;
        - `"velocity"`, the derivative of `x` with respect to the process's own time at fixed `x_0` and `eps`;
            for [`mlem_jax.diffusion.FlowMatching`][] that is `eps - x_0`.
    - `conditioning`: what it is told of the noise: `"log_s"`, the natural logarithm of `s = sigma / alpha`;
        `"log_snr"`, that of `(alpha / sigma)**2`; `"sigma"`; `"time"`, the process's own; or a function of
        `s`, such as `lambda s: 999 * process.t(s)` for a network that counts a thousand steps.

    Raises `ValueError` for another `prediction` or `conditioning`, a network that is not callable, a process
    that is not one; and when called, for a network that returns another shape.
    """

    network: Callable[..., Array]
    process: AbstractProcess
    prediction: str = eqx.field(static=True, default="v")
    conditioning: str | Callable[[Array], Array] = eqx.field(static=True, default="log_s")

    def __check_init__(self):
        if not callable(self.network):
            raise ValueError(
                f"NoisePredictor was given a network of type {type(self.network).__name__}; a callable "
                "(x, conditioning) -> array is expected. If these are the parameters of a model, write "
                "NoisePredictor(eqx.Partial(model.apply, parameters), ...)."
            )
        if not isinstance(self.process, AbstractProcess):
            raise ValueError(
                f"NoisePredictor was given process={self.process!r}; an instance is expected, for example "
                "VariancePreserving(), EDM() or FlowMatching()."
            )
        if self.prediction not in get_args(Prediction):
            raise ValueError(
                f"prediction={self.prediction!r} is not known; write one of {get_args(Prediction)}."
            )
        if not callable(self.conditioning) and self.conditioning not in get_args(Conditioning):
            raise ValueError(
                f"conditioning={self.conditioning!r} is not known; write one of {get_args(Conditioning)}, or "
                "a function of s = sigma / alpha."
            )

    def __call__(self, x: Float[Array, "..."], s: Float[Array, ""], label: PyTree = None) -> Array:
        """The predicted noise, of `x`'s shape and dtype. A `label` that is not `None` is handed to the network
        as its third argument."""
        conditioning = self._conditioning(s)
        out = self.network(x, conditioning) if label is None else self.network(x, conditioning, label)
        if jnp.shape(out) != x.shape:
            raise ValueError(
                f"The network returned an array of shape {jnp.shape(out)} for an input of shape {x.shape}; the "
                "same shape is expected. Adapt it, for example if it returns channels for a variance too: "
                "eqx.Partial(lambda network, x, c: network(x, c)[..., :3], network)."
            )
        return self._noise(x, jnp.asarray(out, x.dtype), s)

    def _conditioning(self, s: Float[Array, ""]) -> Array:
        if callable(self.conditioning):
            return self.conditioning(s)
        if self.conditioning == "time":
            return self.process.t(s)
        if self.conditioning == "sigma":
            return self.process.sigma(s)
        return jnp.log(s) if self.conditioning == "log_s" else -2 * jnp.log(s)

    def _noise(self, x: Float[Array, "..."], out: Float[Array, "..."], s: Float[Array, ""]) -> Array:
        alpha, sigma = self.process.alpha(s), self.process.sigma(s)
        if self.prediction == "eps":
            return out
        if self.prediction == "x0":
            return (x - alpha * out) / sigma
        if self.prediction == "score":
            return -sigma * out
        if self.prediction == "v":
            return (sigma * x + alpha * out) / self.process.power(s)
        # x = alpha (x_0 + s eps), so dx/ds = (alpha' / alpha) x + alpha eps, which is velocity * dt/ds.
        one = jnp.ones_like(s)
        _, alpha_slope = jax.jvp(self.process.alpha, (s,), (one,))
        _, t_slope = jax.jvp(self.process.t, (s,), (one,))
        return (t_slope * out - alpha_slope / alpha * x) / alpha


class Preconditioned(eqx.Module):
    """A network with the preconditioning of Karras et al. 2022 (table 1, EDM), `(x, sigma) -> x_0`. To be used
    with [`mlem_jax.diffusion.EDM`][]:

        NoisePredictor(Preconditioned(network), EDM(), "x0", conditioning="sigma")

    **Arguments:**

    - `network`: a callable `(x, c_noise)`, or `(x, c_noise, label)`, with an input of about unit variance
        and `c_noise = log(sigma) / 4`.
    - `sigma_data`: standard deviation of the data's components, as in training.

    Raises `ValueError` unless `sigma_data` is positive and finite.
    """

    network: Callable[..., Array]
    sigma_data: float = eqx.field(static=True, default=0.5)

    def __check_init__(self):
        if not 0 < self.sigma_data < float("inf"):
            raise ValueError(f"sigma_data={self.sigma_data}; a positive number is expected, such as 0.5.")

    def __call__(self, x: Float[Array, "..."], sigma: Float[Array, ""], *label: Any) -> Array:
        power = sigma**2 + self.sigma_data**2
        out = self.network(x * jax.lax.rsqrt(power), jnp.log(sigma) / 4, *label)
        return self.sigma_data**2 / power * x + sigma * self.sigma_data * jax.lax.rsqrt(power) * out

    def training_pair(
        self, x: Float[Array, "n h w c"], sigma: Float[Array, " n"], x0: Float[Array, "n h w c"]
    ) -> tuple[Float[Array, "n h w c"], Float[Array, " n"], Float[Array, "n h w c"]]:
        """What the network inside sees, and what it should return, for noised images `x = x0 + sigma eps`. Its mean
        squared error is the loss of Karras et al. 2022 with their weight."""
        column = sigma[:, None, None, None]
        power = column**2 + self.sigma_data**2
        scale = jax.lax.rsqrt(power)
        target = (x0 - self.sigma_data**2 / power * x) / (column * self.sigma_data * scale)
        return x * scale, jnp.log(sigma) / 4, target


def training_target(
    prediction: TrainedPrediction,
    process: AbstractProcess,
    x0: Float[Array, "n h w c"],
    eps: Float[Array, "n h w c"],
    s: Float[Array, "n 1 1 1"],
) -> Float[Array, "n h w c"]:
    """What a network with this `prediction` should return for the image noised to `s`, one for each image."""
    if prediction == "velocity":
        one = jnp.ones_like(s)
        slopes = (jax.jvp(f, (s,), (one,))[1] for f in (process.alpha, process.sigma, process.t))
        alpha_slope, sigma_slope, t_slope = slopes
        return (alpha_slope * x0 + sigma_slope * eps) / t_slope
    return {"eps": eps, "x0": x0, "v": process.alpha(s) * eps - process.sigma(s) * x0}[prediction]
