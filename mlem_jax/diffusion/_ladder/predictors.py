"""A ladder of networks that were not trained here."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..._calibration import Calibration
from ..._checks import as_costs
from .._network import AbstractNetwork
from .._predictor import NoisePredictor
from .._process import AbstractProcess
from .base import AbstractLadder, Guidance
from .sizes import count_parameters, count_predictor_flops


class PredictorLadder(AbstractLadder):
    """Networks of others as a ladder, cheapest first; or a single one.

    !!! example

        ```python
        ladder = PredictorLadder([load_network("ddpm-small"), load_network("ddpm-large")])
        ladder = calibrate_methods(ladder)
        ladder.save_calibrations("ddpm")  # later: ladder.load_calibrations("ddpm")
        found = sample(ladder, n=64, plan=ladder.plan(budget=8), key=jr.key(0))
        ```

    Levels may differ in architecture, in what they predict and in what they are told of the noise: each
    [`mlem_jax.diffusion.NoisePredictor`][] translates its own. Their processes may differ too: sampling then starts and
    ends where all of them were trained, and `remarks` report it. They have to share the images and, if they take any,
    the labels.

    **Arguments:**

    - `levels`: [`mlem_jax.diffusion.NoisePredictor`][]s, such as [`mlem_jax.diffusion.load_network`][] returns;
        guided ones have [`mlem_jax.diffusion.Guided`][] inside.
    - `shape`: of one image; found from networks that know it, as those of `load_network` do.
    - `classes`: how many labels there are; found likewise.
    - `labels`: for levels whose `args` are not integers (embeddings of texts, say): arrays with a leading axis, from
        which those of pilots are drawn.
    - `costs`: of one evaluation of each level on one image, in any unit; by default FLOPs, as XLA counts them.
    - `calibrations`: see [`mlem_jax.diffusion.AbstractLadder`][].

    Raises `ValueError` for something that is not a predictor, for levels of different images or labels, or whose
    processes have no noise levels in common, for a level that does not return an array of its input's shape, and for
    levels that are not ordered by cost.
    """

    def __init__(
        self,
        levels: Sequence[NoisePredictor],
        *,
        shape: tuple[int, ...] | None = None,
        classes: int | None = None,
        labels: PyTree = None,
        costs: Sequence[float] | None = None,
        calibrations: dict[str, Calibration] | None = None,
    ):
        self._levels = _checked_levels(levels)
        networks = [_network_inside(level.network) for level in self._levels]
        self._shape = _common_shape(shape, networks)
        self._classes = _common_classes(classes, networks) if labels is None else None
        self._labels = labels
        self._process, self.remarks = _common_process(self._levels)
        self.calibrations = dict(calibrations or {})
        self._costs = self._checked_costs(costs)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self._shape))
        labels = "" if self._classes is None else f", {self._classes} classes"
        lines = [f"PredictorLadder for images of {size}{labels}"]
        for k, level in enumerate(self._levels):
            network = _network_inside(level.network) or level.network
            lines.append(
                f"  level {k + 1}: {type(network).__name__}, {count_parameters(network):,} parameters, "
                f"{level.prediction}-prediction, {type(level.process).__name__}"
            )
        lines.append(f"  calibrations: {', '.join(sorted(self.calibrations)) or 'none'}")
        return "\n".join([*lines, *self.remarks])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return self._shape

    @property
    def process(self) -> AbstractProcess:
        """That of the finest level, in the range of `s` that all levels share."""
        return self._process

    @property
    def classes(self) -> int | None:
        """How many labels there are, or `None`."""
        return self._classes

    @property
    def labels(self) -> PyTree:
        """From which the labels of pilots are drawn."""
        return self._labels if self._classes is None else jnp.arange(self._classes)

    @property
    def seed(self) -> int:
        """From which that of the pilots is made."""
        return 0

    def predictors(self, *, guidance: Guidance | None = None) -> tuple[NoisePredictor, ...]:
        """The levels as they were given. Raises `ValueError` for guidance, which belongs into each of them."""
        if guidance is not None:
            raise ValueError(
                f"guidance={guidance} is for a ladder that was trained here. Load the networks with it instead, "
                f"load_network(path, guidance={guidance}), or write NoisePredictor(Guided(network, scale, null), ...)."
            )
        return self._levels

    def level_costs(self, *, guided: bool = False) -> tuple[float, ...]:
        """Cost of one evaluation of each level on one image: FLOPs unless others were given."""
        del guided
        return self._costs

    def with_calibrations(self, calibrations: dict[str, Calibration]) -> "PredictorLadder":
        """The same ladder with these calibrations instead of its own."""
        ladder = copy.copy(self)
        ladder.calibrations = dict(calibrations)
        return ladder

    def _checked_costs(self, costs: Sequence[float] | None) -> tuple[float, ...]:
        """Those given, or FLOPs; and every level called once with shapes alone."""
        label = jax.tree.map(lambda leaf: leaf[0], self.labels)
        counted = tuple(_flops(k, level, self._shape, label) for k, level in enumerate(self._levels))
        if costs is not None:
            return tuple(as_costs("PredictorLadder", costs, len(self._levels)).tolist())
        order = np.argsort(counted, kind="stable")
        if np.any(np.diff(order) < 0) or len(set(counted)) < len(counted):
            sizes = ", ".join(f"{flops / 1e6:.3g}" for flops in counted)
            raise ValueError(
                f"The levels take {sizes} million FLOPs for an image; the cheapest is expected first and each more "
                f"expensive than the one before. Their order by cost: {', '.join(str(k + 1) for k in order)}. Where "
                "FLOPs do not say what they cost, as for one network in two precisions, write costs=[...], in any unit."
            )
        return counted


def _checked_levels(levels: Sequence[NoisePredictor]) -> tuple[NoisePredictor, ...]:
    if isinstance(levels, NoisePredictor):
        raise ValueError("PredictorLadder needs a list of levels; for a single one write [predictor].")
    found = tuple(levels)
    if not found:
        raise ValueError("PredictorLadder was given no levels; at least one NoisePredictor is expected.")
    for k, level in enumerate(found):
        if not isinstance(level, NoisePredictor):
            raise ValueError(
                f"Level {k + 1} of PredictorLadder is a {type(level).__name__}; a NoisePredictor is expected. Write "
                "load_network(path), or NoisePredictor(network, process, prediction)."
            )
    return found


def _network_inside(network: Any) -> AbstractNetwork | None:
    """The network inside guidance and preconditioning, if it is one that knows its shape."""
    while not isinstance(network, AbstractNetwork):
        inside = getattr(network, "network", None)
        if inside is None:
            return None
        network = inside
    return network


def _common_shape(
    shape: tuple[int, ...] | None, networks: Sequence[AbstractNetwork | None]
) -> tuple[int, ...]:
    known = {k: tuple(network.shape) for k, network in enumerate(networks) if network is not None}
    if shape is not None:
        wanted, where = tuple(shape), f"shape={tuple(shape)}"
    elif known:
        first = next(iter(known))
        wanted, where = known[first], f"level {first + 1} is for images of {_size(known[first])}"
    else:
        raise ValueError(
            "PredictorLadder cannot see the shape of one image from these networks; write for example "
            "shape=(32, 32, 3)."
        )
    for k, own in known.items():
        if own != wanted:
            raise ValueError(
                f"Level {k + 1} is for images of {_size(own)}, and {where}: the levels of a ladder have to share the "
                "images. Networks for latents of one autoencoder fit together, those for other sizes do not."
            )
    return wanted


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _common_classes(classes: int | None, networks: Sequence[AbstractNetwork | None]) -> int | None:
    known = {k: network.classes for k, network in enumerate(networks) if network is not None}
    wanted = classes if classes is not None else next(iter(known.values()), None)
    for k, own in known.items():
        if own != wanted:
            says = [f"{n} labels" if n is not None else "no labels" for n in (own, wanted)]
            raise ValueError(
                f"Level {k + 1} takes {says[0]}, and {says[1]} are expected by the others: the levels of a ladder have "
                "to share the labels. Wrap one that ignores them: eqx.Partial(lambda network, x, c, label: "
                "network(x, c), network)."
            )
    return wanted


def _common_process(levels: tuple[NoisePredictor, ...]) -> tuple[AbstractProcess, tuple[str, ...]]:
    """The finest level's process where all levels were trained, and a remark where that is less than its own range."""
    finest = levels[-1].process
    low = max(level.process.s_min for level in levels)
    high = min(level.process.s_max for level in levels)
    if (low, high) == (finest.s_min, finest.s_max):
        return finest, ()
    if not low < high:
        ranges = ", ".join(f"{level.process.s_min:g} to {level.process.s_max:g}" for level in levels)
        raise ValueError(
            f"The levels were trained for noise levels s = sigma / alpha from {ranges}, which have none in common."
        )
    remark = (
        f"The levels were trained for different noise levels; sampling runs where all were, from s = {high:g} down to "
        f"{low:g}."
    )
    return dataclasses.replace(finest, s_min=low, s_max=high), (remark,)


def _flops(k: int, level: NoisePredictor, shape: tuple[int, ...], label: PyTree) -> float:
    try:
        return count_predictor_flops(level, shape, label)
    except (TypeError, ValueError) as error:
        taking = "" if label is None else " with a label"
        raise ValueError(f"Level {k + 1}, called on an image of {_size(shape)}{taking}: {error}") from error
