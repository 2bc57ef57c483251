"""The schedulers of diffusers as processes of this library: what `scheduler_config.json` says."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._process import AbstractProcess, FlowMatching, VarianceExploding, VariancePreserving

_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# diffusers' cap on the rate of the cosine schedule (Nichol & Dhariwal 2021, section 3.2) and their offset.
_MOST, _OFFSET = 0.999, 0.008
_NO_SIGNAL = "Sampling starts at a finite s = sigma / alpha: the last step has to keep some signal."


@dataclasses.dataclass(frozen=True)
class DiscreteTimes:
    """The number of a step, from 0 to `steps - 1`, as a function of `s = sigma / alpha`: the conditioning of
    networks that were trained at whole steps of Ho et al. 2020. Between them it is interpolated linearly in `log s`.

    **Arguments:** `steps`; `schedule`, one of diffusers' `"linear"`, `"scaled_linear"` and `"squaredcos_cap_v2"`;
    `betas`, the first and the last rate, not used by the last of these; or `trained`, all rates.

    Raises `ValueError` for a schedule that is not known, or one that ends with no signal at all.
    """

    steps: int = 1000
    schedule: str = "linear"
    betas: tuple[float, float] = (1e-4, 0.02)
    trained: tuple[float, ...] | None = None

    def __post_init__(self):
        if not np.all(np.isfinite(self.table())):
            raise ValueError(f"The scheduler's last step has no signal left. {_NO_SIGNAL}")

    def table(self) -> Float[np.ndarray, " steps"]:
        """`s` at every step, growing."""
        kept = np.cumprod(1 - self._rates())
        with np.errstate(divide="ignore"):
            return np.sqrt((1 - kept) / kept)

    def _rates(self) -> Float[np.ndarray, " steps"]:
        first, last = self.betas
        if self.trained is not None:
            return np.asarray(self.trained)
        if self.schedule == "linear":
            return np.linspace(first, last, self.steps)
        if self.schedule == "scaled_linear":
            return np.linspace(math.sqrt(first), math.sqrt(last), self.steps) ** 2
        if self.schedule == "squaredcos_cap_v2":
            t = np.arange(self.steps + 1) / self.steps
            kept = np.cos((t + _OFFSET) / (1 + _OFFSET) * math.pi / 2) ** 2
            return np.minimum(1 - kept[1:] / kept[:-1], _MOST)
        raise ValueError(
            f"beta_schedule = {self.schedule!r} is not supported; linear, scaled_linear and squaredcos_cap_v2 are."
        )

    def __call__(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        table = jnp.asarray(np.log(self.table()), s.dtype)
        return jnp.interp(jnp.log(s), table, jnp.arange(len(table), dtype=s.dtype))

    def process(self) -> VariancePreserving:
        """The process whose range of `s` is that of the steps. Its own time is the schedule's in the limit of many
        steps for `"linear"`, the cosine schedule's for the others; only `grid(spacing="time")` depends on it."""
        s = self.table()
        linear = self.schedule == "linear" and self.trained is None
        # Rates per step against rates per unit of time.
        betas = (self.betas[0] * self.steps, self.betas[1] * self.steps) if linear else None
        return VariancePreserving(float(s[0]), float(s[-1]), betas)


@dataclasses.dataclass(frozen=True)
class ScaledTime:
    """`scale` times a process's own time, as a function of `s`."""

    process: AbstractProcess
    scale: float

    def __call__(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.scale * self.process.t(s)


@dataclasses.dataclass(frozen=True)
class Training:
    """How a network was trained: three arguments of [`mlem_jax.diffusion.NoisePredictor`][]."""

    process: AbstractProcess
    prediction: str
    conditioning: str | Callable[[Array], Array]


def read_scheduler(table: Mapping[str, Any]) -> Training:
    """What a `scheduler_config.json` says of the training; `{}` is diffusers' default, 1,000 steps of Ho et al.
    2020 with a predicted noise. What only its sampler uses, such as `clip_sample`, is left out.

    Raises `ValueError` for schedules and predictions that are not supported."""
    kind = table.get("_class_name", "DDPMScheduler")
    if kind == "ScoreSdeVeScheduler":
        low, high = table.get("sigma_min", 0.01), table.get("sigma_max", 1348.0)
        return Training(VarianceExploding(low, high), "score", "sigma")
    if kind.startswith("FlowMatch"):
        process = FlowMatching()
        return Training(
            process, "velocity", ScaledTime(process, float(table.get("num_train_timesteps", 1000)))
        )
    prediction = table.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise ValueError(
            f"The scheduler has prediction_type = {prediction!r}; supported are {', '.join(_PREDICTIONS)}."
        )
    if table.get("rescale_betas_zero_snr"):
        raise ValueError(f"The scheduler has rescale_betas_zero_snr. {_NO_SIGNAL}")
    trained = table.get("trained_betas")
    times = DiscreteTimes(
        steps=table.get("num_train_timesteps", 1000),
        schedule=table.get("beta_schedule", "linear"),
        betas=(table.get("beta_start", 1e-4), table.get("beta_end", 0.02)),
        trained=None if trained is None else tuple(trained),
    )
    return Training(times.process(), _PREDICTIONS[prediction], times)
