"""The networks of faces.py, their training in two ways, and their calibrations."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from PIL import Image

import mlem_jax as ml
from mlem_jax.diffusion import calibrate_ladder, Config, Ladder, load_ladder
from mlem_jax.diffusion._data import Images
from mlem_jax.diffusion._ladder import (
    as_stored,
    count_flops,
    count_parameters,
    fit_ladder_steps,
    METHODS,
)
from mlem_jax.diffusion._network import AbstractNetwork
from mlem_jax.diffusion._training import Sheets, train_networks

# Steps between checkpoints. On two cores they take about a minute for the finest network.
SAVE_EVERY = 50


def load_heads(
    folder: Path, training: int, held_out: int
) -> tuple[UInt8[np.ndarray, "n h w 3"], UInt8[np.ndarray, "m h w 3"]]:
    """The first heads of a folder for training, and the next ones held out. Raises `FileNotFoundError` if one is
    missing."""
    paths = [folder / f"{number:06d}.png" for number in range(training + held_out)]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise FileNotFoundError(
            f"{missing} is missing. Write: python benchmarks/make_heads.py {len(paths)} {folder}"
        )
    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(lambda path: np.asarray(Image.open(path)), paths)))
    return images[:training], images[training:]


def averaged(folder: Path, network: AbstractNetwork) -> tuple[AbstractNetwork, int]:
    """The averaged network in the last checkpoint of a run of `train_networks`, which may still be running, and the
    number of its steps. Raises `FileNotFoundError` without a checkpoint, `ValueError` for another network."""
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()] if folder.is_dir() else []
    if not steps:
        raise FileNotFoundError(f"{folder} holds no checkpoint.")
    kept = ocp.StandardCheckpointer().restore(folder.absolute() / str(max(steps)) / "default")["averages"][0][
        0
    ]

    def stored(path: Any, leaf: Any) -> Any:
        found = kept
        try:
            for part in path:
                found = found[part.name if isinstance(part, jax.tree_util.GetAttrKey) else part.idx]
        except (KeyError, IndexError, TypeError):
            found = None
        if getattr(found, "shape", None) != leaf.shape:
            raise ValueError(f"{folder} holds another network: {jax.tree_util.keystr(path)} differs.")
        return jnp.asarray(found, leaf.dtype)

    params, static = eqx.partition(network, eqx.is_inexact_array)
    return eqx.combine(jax.tree_util.tree_map_with_path(stored, params), static), max(steps)


def finest_network(
    config: Config, images: Images, held_out: Images, out: Path, *, checkpoint: Path | None
) -> tuple[AbstractNetwork, int]:
    """The finest level and its number of training steps. It is trained in `out`, or taken from `checkpoint`, an `--out`
    of the command `train` that may be unfinished. Raises `ValueError` if that has another network."""
    untrained = config.networks()[-1]
    if checkpoint is None:
        ((trained,), *_), _ = train_networks(
            config,
            (untrained,),
            images,
            out / "finest",
            steps=config.training.steps,
            peak_learning_rate=config.training.learning_rate,
            label="finest level",
            save_every=SAVE_EVERY,
            watch=_sheets(out, "finest", config, held_out),
        )
        return trained, config.training.steps
    if not (checkpoint / "ladder").is_dir():
        return averaged(checkpoint / "finest", untrained)
    ladder = load_ladder(checkpoint / "ladder")
    if ladder.config.levels[-1] != config.levels[-1]:
        raise ValueError(f"{checkpoint} has another finest level than the study: {ladder.config.levels[-1]}.")
    return ladder.networks[-1], ladder.config.training.steps


def with_smaller_levels(
    config: Config, finest: AbstractNetwork, images: Images, held_out: Images, out: Path, *, matched: bool
) -> Ladder:
    """The ladder whose smaller levels are matched to the finest one, all in one pass over its outputs, or trained on
    the images like the finest one; in both cases for `match_steps` steps."""
    training, name = config.training, "matched" if matched else "independent"
    (smaller, *_), _ = train_networks(
        config,
        config.networks()[:-1],
        images,
        out / "smaller",
        steps=training.match_steps,
        peak_learning_rate=training.match_learning_rate if matched else training.learning_rate,
        teacher=finest if matched else None,
        label=f"smaller levels, {name}",
        save_every=SAVE_EVERY,
        watch=_sheets(out, name, config, held_out),
    )
    networks = tuple(as_stored(network) for network in (*smaller, finest))
    card = {
        "parameters": [count_parameters(network) for network in networks],
        "flops_per_image": [count_flops(network) for network in networks],
        "training_images": len(images),
        "held_out_images": len(held_out),
    }
    return Ladder(networks, config, card, {})


def _sheets(out: Path, stage: str, config: Config, held_out: Images) -> Sheets | None:
    return Sheets(out / "sheets", stage, config, held_out) if config.training.sheet_every else None


def calibrated(
    ladder: Ladder, folder: Path, *, sde: bool, pilots: int, steps: int, fit_pilots: int, most: float
) -> Ladder:
    """The ladder with calibrations of the probability flow, of both orders and (if there are pilots for them) with
    fitted steps of costs up to `most`, or of the reverse SDE. Those in the folder are used if they belong to these
    levels."""
    settings: dict[str, dict[str, Any]] = {
        "ode": {"steps": steps},
        "ode_2": {"steps": steps, "method": METHODS[1]},
        "sde": {"steps": 2 * steps, "sde": True},
    }
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, ml.Calibration] = {}
    for kind in ("sde",) if sde else ("ode", "ode_2"):
        path = folder / f"calibration_{kind}.npz"
        kept = _kept(path, ladder, sde)
        if kept is None:
            kept = calibrate_ladder(ladder, pilots=pilots, like=found.get("ode"), **settings[kind])
            kept.save(path)
        if kind == "ode_2" and fit_pilots and kept.fitted is None:
            kept = kept.with_fitted(fit_ladder_steps(ladder, fit_pilots, most=most, keep_in=folder))
            kept.save(path)
        print(kind, kept, sep="\n", flush=True)
        found[kind] = kept
    return Ladder(ladder.networks, ladder.config, ladder.card, found)


def without_finest(ladder: Ladder) -> Ladder:
    """The ladder of the smaller levels."""
    levels = slice(0, len(ladder.networks) - 1)
    config = dataclasses.replace(ladder.config, levels=ladder.config.levels[levels])
    card = {**ladder.card, **{name: ladder.card[name][levels] for name in ("parameters", "flops_per_image")}}
    return Ladder(ladder.networks[levels], config, card, {})


def _kept(path: Path, ladder: Ladder, sde: bool) -> ml.Calibration | None:
    if not path.is_file():
        return None
    calibration = ml.Calibration.load(path)
    try:
        calibration.require(ladder.term(sde=sde).levels, jnp.zeros(ladder.config.shape))
    except ValueError as error:
        print(f"{path} is measured again: {error}")
        return None
    return calibration


def colour_sheet(rows: list[tuple[str, Float[np.ndarray, "n h w 3"]]], *, columns: int = 8) -> Figure:
    """The same images by several methods, a labelled row for each; values from -1 to 1, others are clipped."""
    figure = Figure(figsize=(columns, 1.22 * len(rows)), layout="constrained")
    for axis, (label, images) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        strip = np.concatenate(list(images[:columns]), axis=1)
        axis.imshow(np.clip(strip / 2 + 0.5, 0, 1), interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(label, loc="left", fontsize=8, pad=2)
    return figure
