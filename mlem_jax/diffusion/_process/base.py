"""Noising processes, `x = alpha x_0 + sigma eps`, in the variables `(y, s)`.

In `y = x / alpha` and `s = sigma / alpha` the probability flow is `dy/ds = eps_hat` whatever the process, and
plain Euler is DDIM (Song, Meng & Ermon 2021). So a process is two functions of `s`, `alpha(s)` and
`sigma(s)`, with the map `t(s)` to the time in which its networks were trained, and back, `s(t)`. Sampling never
leaves `(y, s)`: levels trained under different processes may stand in one ladder.

    process = FlowMatching()
    ts = process.grid(64, spacing="time")  # decreasing s, for diffrax.StepTo
    y0 = process.s_max * jr.normal(key, shape)
    image = process.alpha(ts[-1]) * y_end  # y_end itself, at so small an s, is the clean image too

What turns networks into levels is in `_predictor`. For a new process copy `variance_exploding.py`.
"""

import abc
import math

import equinox as eqx
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
