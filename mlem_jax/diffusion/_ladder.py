"""A ladder of trained levels: built, saved, loaded, and turned into a diffrax term."""

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._calibrate import calibrate
from .._calibration import Calibration
from .._methods import Order
from .._term import MultilevelTerm
from ._adapter import NoisePredictor
from ._config import Config, read_config
from ._drift import NoisyTerms, ProbabilityFlow, ReverseDrift
from ._unet import UNet

_SHIPPED = Path(__file__).parent / "fashion_mnist"
_CONFIG, _CARD = "ladder.toml", "card.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Ladder:
    """Trained networks of growing size, cheapest first.

    - `networks`: the levels' networks.
    - `config`: the description they were built from.
    - `card`: what was measured after training (losses, FLOPs and parameters of each level).
    - `calibrations`: of the probability flow (`"ode"`) and of the reverse SDE (`"sde"`).
    """

    networks: tuple[UNet, ...]
    config: Config
    card: dict[str, Any]
    calibrations: dict[str, Calibration]

    def term(self, *, sde: bool = False) -> MultilevelTerm:
        """The multilevel drift of sampling: the probability flow, or with `sde=True` the reverse SDE's
        (add [`mlem_jax.diffusion.reverse_diffusion`][] for the noise). Costs are FLOPs per image."""
        drift = ReverseDrift if sde else ProbabilityFlow
        return MultilevelTerm(*map(drift, self.predictors()), costs=self.flops())

    def predictors(self) -> tuple[NoisePredictor, ...]:
        """The networks as predictions of the noise."""
        return tuple(map(self.config.predictor, self.networks))

    def calibration(self, *, sde: bool = False) -> Calibration:
        """The measured increments, for choosing probabilities."""
        return self.calibrations["sde" if sde else "ode"]

    def flops(self) -> tuple[float, ...]:
        """FLOPs of one evaluation of each level on one image, as XLA counts them."""
        return tuple(count_flops(network) for network in self.networks)


def calibrate_ladder(
    ladder: Ladder,
    *,
    sde: bool = False,
    order: Order = 1,
    steps: int | None = None,
    pilots: int = 32,
    progress: bool = True,
) -> Calibration:
    """Calibrates the probability flow, or the reverse SDE, on `pilots` images of fresh noise and Karras'
    grid of `steps` steps (by default 128, for the SDE 256)."""
    process, shape = ladder.config.process, ladder.config.shape
    ts = process.grid(steps or (256 if sde else 128))
    keys = jr.split(jr.key(ladder.config.training.seed + 2))
    y0s = process.s_max * jr.normal(keys[0], (pilots, *shape))
    term = ladder.term(sde=sde)
    return calibrate(
        NoisyTerms(term, ts, shape) if sde else term, ts, y0s, key=keys[1], order=order, progress=progress
    )


def count_flops(network: UNet) -> float:
    """FLOPs of one evaluation on one image, as XLA counts them before it optimises. Of the network only the shapes
    matter, and they are enough."""
    struct = jax.ShapeDtypeStruct((1, *network.shape), jnp.float32)
    level = jax.ShapeDtypeStruct((), jnp.float32)
    params, static = eqx.partition(network, _has_shape)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)

    def call(params: Any, x: Any, noise_level: Any) -> Any:
        return eqx.combine(params, static)(x, noise_level)

    analysis = jax.jit(call).lower(shapes, struct, level).cost_analysis()
    assert analysis is not None
    return float(analysis["flops"])


def count_parameters(network: UNet) -> int:
    """Number of trained parameters."""
    return sum(x.size for x in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))


def _has_shape(x: Any) -> bool:
    return eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)


def save_ladder(directory: str | Path, ladder: Ladder, config_text: str) -> None:
    """Writes `ladder.toml`, `card.json`, one `level_k.eqx` (float16) per level and the calibrations.

    Everything is written beside the target and renamed into place. Raises `FileExistsError` rather than
    replace an existing directory.
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"{directory} exists already; choose another place or move it away.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        (temporary / _CONFIG).write_text(config_text)
        (temporary / _CARD).write_text(json.dumps(ladder.card, indent=2) + "\n")
        for kind, calibration in ladder.calibrations.items():
            calibration.save(temporary / f"calibration_{kind}.npz")
        for k, network in enumerate(ladder.networks):
            half = _cast(network, np.float16)
            eqx.tree_serialise_leaves(temporary / f"level_{k + 1}.eqx", half)
        os.chmod(temporary, 0o755)
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_ladder(directory: str | Path = _SHIPPED) -> Ladder:
    """The ladder saved in a directory; without argument the one shipped with the package (four UNets
    on Fashion-MNIST, see its model card).

    Raises `FileNotFoundError` for a directory that is not a ladder, `ValueError` for levels that do not
    fit the description.
    """
    directory = Path(directory)
    if not (directory / _CONFIG).is_file():
        raise FileNotFoundError(
            f"{directory} is not a ladder: it has no {_CONFIG}. 'python -m mlem_jax train --out DIR' "
            "makes one in DIR/ladder."
        )
    config = read_config(directory / _CONFIG)
    networks = []
    # Shapes only: drawing random parameters, to be replaced at once, takes many seconds.
    for k, network in enumerate(eqx.filter_eval_shape(config.networks)):
        path = directory / f"level_{k + 1}.eqx"
        try:
            stored = eqx.tree_deserialise_leaves(path, jax.tree.map(_half, network))
        except (RuntimeError, ValueError, EOFError) as error:
            raise ValueError(
                f"{path} does not hold level {k + 1} of {directory / _CONFIG}: it is damaged or belongs to "
                f"another ladder ({str(error).splitlines()[0]})."
            ) from error
        networks.append(_cast(stored, np.float32))
    card = json.loads((directory / _CARD).read_text())
    calibrations = {kind: Calibration.load(directory / f"calibration_{kind}.npz") for kind in ("ode", "sde")}
    return Ladder(tuple(networks), config, card, calibrations)


def as_stored(network: UNet) -> UNet:
    """The network with its parameters rounded as `save_ladder` rounds them."""
    return _cast(_cast(network, np.float16), np.float32)


def _half(x: Any) -> Any:
    is_shape = isinstance(x, jax.ShapeDtypeStruct) and jnp.issubdtype(x.dtype, jnp.floating)
    return jax.ShapeDtypeStruct(x.shape, jnp.float16) if is_shape else x


def _cast(network: UNet, dtype: Any) -> UNet:
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, network)
