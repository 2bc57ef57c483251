"""A ladder of trained levels, and the diffrax terms and plans it gives."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from ..._calibration import Calibration
from .._network import AbstractNetwork
from .._predictor import Guided, NoisePredictor
from .._process import AbstractProcess
from .base import AbstractLadder, Guidance
from .config import Config
from .sizes import count_flops, count_parameters


@dataclasses.dataclass(frozen=True, eq=False)
class Ladder(AbstractLadder):
    """Trained networks of growing size, cheapest first.

    - `networks`: the levels' networks.
    - `config`: the description they were built from.
    - `card`: what was measured after training (losses, FLOPs and parameters of each level).
    - `calibrations`: of the probability flow (`"ode"`) and of the reverse SDE (`"sde"`) for
        [`mlem_jax.EulerMaruyama`][], and perhaps for [`mlem_jax.AdamsBashforth`][] (`"ode_2"`, `"sde_2"`), without
        guidance.

    Networks of a ladder with classes take a label, which comes from the `args` of the solve. With `guidance`, one
    scale or one for each level, each network is wrapped in [`mlem_jax.diffusion.Guided`][].
    """

    networks: tuple[AbstractNetwork, ...]
    config: Config
    card: dict[str, Any]
    calibrations: dict[str, Calibration]

    def __repr__(self) -> str:
        config = self.config
        size = " x ".join(map(str, config.shape))
        labels = "" if config.classes is None else f", {config.classes} classes"
        lines = [f"Ladder {config.name!r} for images of {size}{labels}, {config.prediction}-prediction"]
        for k, network in enumerate(self.networks):
            lines.append(
                f"  level {k + 1}: {type(network).__name__}, {count_parameters(network):,} parameters"
            )
        lines.append(f"  calibrations: {', '.join(sorted(self.calibrations)) or 'none'}")
        return "\n".join(lines)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image, `(height, width, channels)`."""
        return self.config.shape

    @property
    def process(self) -> AbstractProcess:
        """Under which the networks were trained."""
        return self.config.process

    @property
    def classes(self) -> int | None:
        """How many labels there are, or `None`."""
        return self.config.classes

    @property
    def labels(self) -> Int[Array, " classes"] | None:
        """All labels, from which those of pilots are drawn."""
        return None if self.config.classes is None else jnp.arange(self.config.classes)

    @property
    def seed(self) -> int:
        """That of the training, from which the pilots' is made."""
        return self.config.training.seed

    def predictors(self, *, guidance: Guidance | None = None) -> tuple[NoisePredictor, ...]:
        """The networks as predictions of the noise. Raises as `term` does."""
        if guidance is None:
            return tuple(map(self.config.predictor, self.networks))
        classes = self.config.classes
        if classes is None:
            raise ValueError(
                f"guidance={guidance} needs networks that take a label, and this ladder was trained without "
                "classes. Leave it out, or train a ladder with classes = ... in its file."
            )
        single = isinstance(guidance, float | int)
        scales = [guidance] * len(self.networks) if single else list(guidance)
        if len(scales) != len(self.networks):
            raise ValueError(
                f"guidance={guidance} for {len(self.networks)} levels; one scale for all, or one for each, cheapest "
                "level first, is expected."
            )
        return tuple(
            self.config.predictor(Guided(network, float(scale), classes))
            for network, scale in zip(self.networks, scales, strict=True)
        )

    def with_calibrations(self, calibrations: dict[str, Calibration]) -> "Ladder":
        """The same ladder with these calibrations instead of its own."""
        return dataclasses.replace(self, calibrations=calibrations)

    def level_costs(self, *, guided: bool = False) -> tuple[float, ...]:
        """FLOPs of one evaluation of each level on one image, as XLA counts them; with `guided`, of both branches."""
        return tuple(count_flops(network, guided=guided) for network in self.networks)

    def flops(self) -> tuple[float, ...]:
        """FLOPs of one evaluation of each level on one image, as XLA counts them."""
        return self.level_costs()
