"""Noising processes, `x = alpha x_0 + sigma eps`, in the variables `(y, s)`.

In `y = x / alpha` and `s = sigma / alpha` the probability flow is `dy/ds = eps_hat` whatever the process, and
plain Euler is DDIM (Song, Meng & Ermon 2021). So a process here is two functions of `s`, `alpha(s)` and
`sigma(s)`, with the map `t(s)` to the time in which its networks were trained, and back, `s(t)`. Sampling never
leaves `(y, s)`: levels trained under different processes may stand in one ladder.

    process = FlowMatching()
    ts = process.grid(64, spacing="time")  # decreasing s, for diffrax.StepTo
    y0 = process.s_max * jr.normal(key, shape)
    image = process.alpha(ts[-1]) * y_end  # y_end itself, at so small an s, is the clean image too

`VariancePreserving` (cosine, or linear beta), `VarianceExploding`, `EDM`, `FlowMatching`. What turns networks into
levels is in `_adapter.py` and `_drift.py`.
"""

import abc
import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray


class AbstractProcess(eqx.Module):
    """What all processes share. `s_min` and `s_max` bound the range of `s = sigma / alpha` that is trained and
    sampled: at `s_max` the state is taken to be pure noise, at `s_min` it is taken to be clean.

    Raises `ValueError` unless `0 < s_min < s_max` and both are finite.
    """

    s_min: eqx.AbstractVar[float]
    s_max: eqx.AbstractVar[float]

    def __check_init__(self):
        if not 0 < self.s_min < self.s_max < math.inf:
            raise ValueError(
                f"{type(self).__name__} needs 0 < s_min < s_max, both finite, and was given "
                f"s_min={self.s_min}, s_max={self.s_max}."
            )

    @abc.abstractmethod
    def alpha(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        """Scale of the image at `s`."""

    @abc.abstractmethod
    def t(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        """The process's own time at `s`."""

    @abc.abstractmethod
    def s(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """`sigma / alpha` at the process's own time, the inverse of `t`."""

    def sigma(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        """Standard deviation of the noise at `s`."""
        return s * self.alpha(s)

    def power(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        """`alpha**2 + sigma**2`."""
        return (1 + s**2) * self.alpha(s) ** 2

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

    def grid(
        self, steps: int, *, spacing: str = "karras", rho: float | int = 7
    ) -> Float[Array, " steps_plus_1"]:
        """The decreasing times `s_max = s_0 > ... > s_steps = s_min` of a sampling run, for
        `diffrax.StepTo`.

        `"karras"` is uniform in `s**(1/rho)` (Karras et al. 2022), `"log"` in `log s`, `"time"` in the
        process's own time, `"cosine"` in the cosine schedule's. Raises `ValueError` for another name,
        `steps < 1`, or `rho` that is not positive.
        """
        if steps < 1:
            raise ValueError(f"A grid needs at least one step, and was asked for {steps}.")
        if not 0 < rho < math.inf:
            raise ValueError(f"rho={rho!r}; a positive number is expected, such as 7.")
        maps = {
            "karras": (lambda s: s ** (1 / rho), lambda u: u**rho),
            "log": (jnp.log, jnp.exp),
            "cosine": (jnp.arctan, jnp.tan),
            "time": (self.t, self.s),
        }
        if spacing not in maps:
            raise ValueError(f"spacing={spacing!r} is not known; write one of {sorted(maps)}.")
        forward, backward = maps[spacing]
        ends = forward(jnp.array([self.s_max, self.s_min]))
        s = backward(jnp.linspace(ends[0], ends[1], steps + 1))
        # The ends are met exactly, so that diffeqsolve(t0=s[0], t1=s[-1]) and the grid agree.
        return s.at[0].set(self.s_max).at[-1].set(self.s_min)


class VariancePreserving(AbstractProcess):
    """The variance-preserving process, `alpha**2 + sigma**2 = 1`.

    **Arguments:**

    - `s_min`, `s_max`: the range of `s`, see [`mlem_jax.diffusion.AbstractProcess`][].
    - `betas`: without it the cosine schedule, `s = tan(pi t / 2)` (Nichol & Dhariwal 2021, without
        their offset). With `betas=(first, last)` noise is added at a rate that rises linearly from `first`
        at `t = 0` to `last` at `t = 1`, `log(1 + s**2) = first t + (last - first) t**2 / 2`
        (Song et al. 2021, appendix C); their values, and DDPM's in the limit of many steps, are
        `(0.1, 20.0)`.

    Only the map between `s` and time depends on the schedule. Raises `ValueError` unless
    `0 <= first <= last`, with `0 < last < inf`.
    """

    s_min: float = eqx.field(static=True, default=0.01)
    s_max: float = eqx.field(static=True, default=80.0)
    betas: tuple[float, float] | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.betas is None:
            return
        if len(self.betas) != 2 or not 0 <= self.betas[0] <= self.betas[1] < math.inf or self.betas[1] == 0:
            raise ValueError(
                f"VariancePreserving was given betas={self.betas}; the first and the last rate of noising are "
                "expected, 0 <= first <= last, such as betas=(0.1, 20.0). Leave it out for the cosine schedule."
            )

    def alpha(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.lax.rsqrt(1 + s**2)

    def power(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        # Exactly, so that nothing is rounded for it.
        return jnp.ones_like(s)

    def t(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.betas is None:
            return jnp.arctan(s) * (2 / math.pi)
        first, last = self.betas
        integral = jnp.log1p(s**2)
        return 2 * integral / (first + jnp.sqrt(first**2 + 2 * (last - first) * integral))

    def s(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.betas is None:
            return jnp.tan(t * (math.pi / 2))
        first, last = self.betas
        return jnp.sqrt(jnp.expm1(first * t + (last - first) / 2 * t**2))


class VarianceExploding(AbstractProcess):
    """The variance-exploding process of Song et al. 2021: `alpha = 1` and `sigma = s_min (s_max / s_min)**t`, so
    that `t = 0` is clean and `t = 1` is noise.

    **Arguments:** `s_min`, `s_max`, the range of `s`, which is `sigma` here.
    """

    s_min: float = eqx.field(static=True, default=0.01)
    s_max: float = eqx.field(static=True, default=80.0)

    def alpha(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.ones_like(s)

    def t(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.log(s / self.s_min) / math.log(self.s_max / self.s_min)

    def s(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.s_min * jnp.exp(t * math.log(self.s_max / self.s_min))


class EDM(AbstractProcess):
    """The process of Karras et al. 2022: `alpha = 1`, and time is `sigma` itself. For networks with their
    preconditioning see [`mlem_jax.diffusion.Preconditioned`][].

    **Arguments:** `s_min`, `s_max`, the range of `s`, which is `sigma` here.
    """

    s_min: float = eqx.field(static=True, default=0.002)
    s_max: float = eqx.field(static=True, default=80.0)

    def alpha(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.ones_like(s)

    def t(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        return s

    def s(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return t


class FlowMatching(AbstractProcess):
    """Flow matching on straight lines between image and noise, also named rectified flow (Liu et al. 2022, Lipman
    et al. 2022): `x = (1 - t) x_0 + t eps`.

    **Arguments:**

    - `s_min`, `s_max`: the range of `s = t / (1 - t)`, see [`mlem_jax.diffusion.AbstractProcess`][].
    - `noise_at`: the time at which there is nothing but noise, 1 as above, or 0 where time runs from noise
        to image, `x = (1 - t) eps + t x_0`, and the velocity has the other sign.

    Raises `ValueError` for another `noise_at`.
    """

    s_min: float = eqx.field(static=True, default=0.01)
    s_max: float = eqx.field(static=True, default=80.0)
    noise_at: Literal[0, 1] = eqx.field(static=True, default=1)

    def __check_init__(self):
        if self.noise_at not in (0, 1):
            raise ValueError(
                f"FlowMatching was given noise_at={self.noise_at!r}; write noise_at=1 if the network was "
                "trained with clean images at t = 0, noise_at=0 if with noise at t = 0."
            )

    def alpha(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        return 1 / (1 + s)

    def t(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        return s / (1 + s) if self.noise_at == 1 else 1 / (1 + s)

    def s(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return t / (1 - t) if self.noise_at == 1 else (1 - t) / t
