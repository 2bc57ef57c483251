"""Any prediction of the noise as a network of a ladder's description."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._ladder import Config
from .._network import AbstractNetwork
from .._predictor import NoisePredictor, training_target


class Teacher(AbstractNetwork):
    """A predictor that answers as a network of `config` would: for its process, with its prediction.

    - `shape`, `classes`: those of the configuration.
    """

    predictor: NoisePredictor
    config: Config = eqx.field(static=True)
    shape: tuple[int, int, int] = eqx.field(static=True)
    classes: int | None = eqx.field(static=True)

    def __init__(self, predictor: NoisePredictor, config: Config):
        self.predictor, self.config = predictor, config
        self.shape, self.classes = config.shape, config.classes

    def __call__(
        self, x: Float[Array, "*n h w c"], noise_level: Float[Array, "*m"], label: ArrayLike | None = None
    ) -> Float[Array, "*n h w c"]:
        if x.ndim == 3:
            return self._answer(x, noise_level, label)
        levels = jnp.broadcast_to(noise_level, x.shape[:1])
        labels = None if label is None else jnp.broadcast_to(jnp.asarray(label), x.shape[:1])
        return jax.vmap(self._answer)(x, levels, labels)

    def _answer(
        self, x: Float[Array, "h w c"], noise_level: Float[Array, ""], label: ArrayLike | None
    ) -> Float[Array, "h w c"]:
        s, process = jnp.exp(noise_level), self.config.process
        y = x / process.alpha(s)
        eps = self.predictor(self.predictor.process.alpha(s) * y, s, label)
        column = s.reshape(1, 1, 1, 1)
        return training_target(self.config.prediction, process, (y - s * eps)[None], eps[None], column)[0]
