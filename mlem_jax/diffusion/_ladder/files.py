"""Ladders as folders: written in one step, and read."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..._calibration import Calibration
from ..._io import full_disk_explained
from .._network import AbstractNetwork
from .ladder import Ladder
from .toml import config_text, read_saved_config

_SHIPPED = Path(__file__).parents[1] / "fashion_mnist"
_CONFIG, _CARD = "ladder.toml", "card.json"


def save_ladder(directory: str | Path, ladder: Ladder) -> None:
    """Writes `ladder.toml`, `card.json`, one `level_k.eqx` (float16) per level and the calibrations.

    The folder is written beside the target and renamed into place. Raises `FileExistsError` if the directory exists,
    `OSError` if the disk is full.
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"{directory} exists already; choose another place or move it away.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        with full_disk_explained(directory):
            (temporary / _CONFIG).write_text(config_text(ladder.config))
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
            f"{directory} is not a ladder: it has no {_CONFIG}. mlem_jax.diffusion.train_ladder "
            "writes one to the folder ladder of its run."
        )
    config = read_saved_config(directory / _CONFIG)
    networks = []
    # Shapes only: drawing random parameters that the file then replaces takes many seconds.
    for k, network in enumerate(eqx.filter_eval_shape(config.networks)):
        path = directory / f"level_{k + 1}.eqx"
        try:
            stored = eqx.tree_deserialise_leaves(path, jax.tree.map(_half, network))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path} is missing: the parameters of level {k + 1} of {directory / _CONFIG}. Copy the ladder again, "
                "all files of its folder."
            ) from error
        except (RuntimeError, ValueError, EOFError) as error:
            raise ValueError(
                f"{path} does not hold level {k + 1} of {directory / _CONFIG}: it is damaged or belongs to "
                f"another ladder ({str(error).splitlines()[0]})."
            ) from error
        networks.append(_cast(stored, np.float32))
    try:
        card = json.loads((directory / _CARD).read_text())
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"{directory / _CARD} is damaged or missing ({error}). Copy the ladder again; if there is no other copy, "
            "write {} into that file: only what was measured after training is lost."
        ) from error
    files = sorted(directory.glob("calibration_*.npz"))
    calibrations = {path.stem.removeprefix("calibration_"): Calibration.load(path) for path in files}
    return Ladder(tuple(networks), config, card, calibrations)


def as_stored(network: AbstractNetwork) -> AbstractNetwork:
    """The network with its parameters rounded as `save_ladder` rounds them."""
    return _cast(_cast(network, np.float16), np.float32)


def _half(x: Any) -> Any:
    is_shape = isinstance(x, jax.ShapeDtypeStruct) and jnp.issubdtype(x.dtype, jnp.floating)
    return jax.ShapeDtypeStruct(x.shape, jnp.float16) if is_shape else x


def _cast(network: AbstractNetwork, dtype: Any) -> AbstractNetwork:
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, network)
