"""A ladder's description: its levels, the process and prediction they share, and how they are trained."""

import dataclasses
from collections.abc import Callable
from typing import get_args

import jax.random as jr
from jaxtyping import Array

from .._network import AbstractNetwork
from .._predictor import NoisePredictor, Preconditioned, TrainedPrediction
from .._process import AbstractProcess, EDM, VarianceExploding, VariancePreserving
from .level import DiTLevel, Level
from .training import Training


@dataclasses.dataclass(frozen=True)
class Config:
    """A ladder of levels, cheapest first, as [`mlem_jax.diffusion.read_config`][] reads it from a TOML
    file. With `classes` all its networks take a label.

    Where noise is added to images that are not scaled down (`VarianceExploding`, `EDM`) networks have the
    preconditioning of Karras et al. 2022 around them, [`mlem_jax.diffusion.Preconditioned`][] with its default
    `sigma_data`, and `prediction` is `"x0"`.
    """

    name: str
    shape: tuple[int, int, int]
    levels: tuple[Level | DiTLevel, ...]
    prediction: TrainedPrediction = "v"
    process: AbstractProcess = VariancePreserving()
    training: Training = Training()
    classes: int | None = None

    def __post_init__(self):
        if self.classes is not None and (type(self.classes) is not int or self.classes < 1):
            raise ValueError(
                f"classes = {self.classes!r}; an integer of at least 1 is expected, or none at all."
            )
        if self.prediction not in get_args(TrainedPrediction):
            raise ValueError(
                f"prediction = {self.prediction!r} is not known; write one of {get_args(TrainedPrediction)}."
            )
        if self.preconditioned and self.prediction != "x0":
            raise ValueError(
                f"prediction = {self.prediction!r} with {type(self.process).__name__}, whose networks return the clean "
                'image through a preconditioning; write prediction = "x0", or leave it out of the file.'
            )
        for k, level in enumerate(self.levels):
            try:
                level.check(self.shape, self.classes)
            except ValueError as error:
                raise ValueError(f"[[levels]] number {k + 1}: {error}") from None

    @property
    def preconditioned(self) -> bool:
        """Whether networks have a preconditioning around them."""
        return isinstance(self.process, VarianceExploding | EDM)

    def predictor(self, network: Callable[..., Array]) -> NoisePredictor:
        """A trained network, guided or not, as a prediction of the noise."""
        if self.preconditioned:
            return NoisePredictor(Preconditioned(network), self.process, "x0", conditioning="sigma")
        return NoisePredictor(network, self.process, self.prediction)

    def networks(self) -> tuple[AbstractNetwork, ...]:
        """The untrained levels, cheapest first; the same for the same seed."""
        return tuple(
            level.network(self.shape, self.classes, key=jr.fold_in(jr.key(self.training.seed), i))
            for i, level in enumerate(self.levels)
        )
