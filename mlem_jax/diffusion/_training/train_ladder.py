"""The one command that makes a ladder: finest level first, then the others matched to it."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int

from ..._io import write_text_safely
from .._data.load import Images
from .._ladder.config import Config
from .._ladder.ladder import (
    as_stored,
    calibrate_ladder,
    count_flops,
    count_parameters,
    Ladder,
    load_ladder,
    METHODS,
    save_ladder,
)
from .._ladder.toml import read_config
from .._network.layers import AbstractNetwork
from .batches import check_labels, held_out_losses
from .sheets import Sheets
from .train import HISTORY_EVERY, train_networks


def train_ladder(
    config_path: str | Path,
    out: str | Path,
    images: Images,
    held_out: Images,
    *,
    labels: Int[np.ndarray, " n"] | None = None,
    held_out_labels: Int[np.ndarray, " m"] | None = None,
    start: Ladder | None = None,
    pilots: int = 128,
    progress: bool = True,
) -> Ladder:
    """Trains all levels of a configuration and writes the ladder to `out/ladder`.

    With `start`, an earlier ladder, its finest level is taken over as it is and only the smaller levels
    are matched (distilled); those that the earlier ladder has too go on from there. The card then says how far from
    the finest level they were before.

    At the end the ladder is calibrated on `pilots` images for plans of the probability flow, in steps of either order,
    and of the reverse SDE. A few images in a hundred leave their path, and they decide the RMS error; hence so many.
    With 0 pilots that is left for [`mlem_jax.diffusion.calibrate_ladder`][], which has more settings.

    A configuration with classes needs the labels of both sets of images. Its ladder is calibrated for labels drawn
    uniformly and no guidance.

    Checkpoints go to `out/finest` and `out/smaller`; the same call after an interruption continues
    them, and once the ladder exists it is only loaded. `out/losses.csv` has the loss curves, `out/sheets` a picture
    and the held-out losses of every `sheet_every` steps.

    Raises `ValueError` if `out` was begun with another configuration, if the levels are not in the
    order of their FLOPs, if the images or labels do not fit them, or if the finest level of `start` is of other sizes;
    `FloatingPointError` if a loss is not finite.
    """
    out = Path(out)
    config = read_config(config_path)
    text = Path(config_path).read_text()
    check_labels(config.classes, labels, len(images))
    check_labels(config.classes, held_out_labels, len(held_out), what="held-out images")
    networks = config.networks() if start is None else _start(config, start)
    flops = [count_flops(network) for network in networks]
    if flops != sorted(flops):
        raise ValueError(
            f"The levels of {config_path} take {[round(f) for f in flops]} FLOPs per image; write them "
            "cheapest first."
        )
    if not len(held_out) or held_out.shape[1:] != config.shape:
        raise ValueError(
            f"The held-out images are an array of shape {held_out.shape}; at least one image of shape "
            f"{config.shape} is needed."
        )
    out.mkdir(parents=True, exist_ok=True)
    begun = out / "config.toml"
    if begun.is_file() and begun.read_text() != text:
        raise ValueError(
            f"{out} was begun with another configuration than {config_path}; continue with "
            f"{begun}, or choose another --out."
        )
    write_text_safely(begun, text)
    if (out / "ladder").is_dir():
        return load_ladder(out / "ladder")

    training = config.training

    def sheets(stage: str) -> Sheets | None:
        if not training.sheet_every:
            return None
        return Sheets(out / "sheets", stage, config, held_out, held_out_labels)

    if start is None:
        (finest,), finest_history = train_networks(
            config,
            networks[-1:],
            images,
            out / "finest",
            steps=training.steps,
            peak_learning_rate=training.learning_rate,
            labels=labels,
            label="finest level",
            progress=progress,
            watch=sheets("finest"),
        )
    else:
        finest, finest_history = networks[-1], np.zeros((0, 1), np.float32)
    match = training.match_steps > 0
    smaller_steps = training.match_steps if match else training.steps
    smaller, smaller_history = train_networks(
        config,
        networks[:-1],
        images,
        out / "smaller",
        steps=smaller_steps,
        peak_learning_rate=training.match_learning_rate if match else training.learning_rate,
        labels=labels,
        teacher=finest if match else None,
        label="smaller levels",
        progress=progress,
        watch=sheets("smaller"),
    )
    # What is measured below is what is written: a calibration belongs to the exact numbers in its levels.
    trained = tuple(as_stored(network) for network in (*smaller, finest))
    stages = [
        ("finest", training.steps, len(smaller), finest_history),
        ("smaller", smaller_steps, 0, smaller_history),
    ]
    _write_losses(out / "losses.csv", len(trained), stages)
    card = {
        "name": config.name,
        "parameters": [count_parameters(n) for n in trained],
        "flops_per_image": flops,
        "held_out_loss": held_out_losses(config, trained, held_out, held_out_labels),
        "held_out_images": len(held_out),
        "training_images": len(images),
        "jax": jax.__version__,
    }
    if start is not None:
        before = held_out_losses(config, (*networks[:-1], finest), held_out, held_out_labels)
        card["to_finest_before"] = before["to_finest"]
    ladder = Ladder(trained, config, card, {})
    if pilots:
        settings = {"pilots": pilots, "progress": progress}
        calibrations = {
            "ode": calibrate_ladder(ladder, **settings),
            "ode_2": calibrate_ladder(ladder, method=METHODS[1], **settings),
            "sde": calibrate_ladder(ladder, sde=True, **settings),
        }
        ladder = dataclasses.replace(ladder, calibrations=calibrations)
    save_ladder(out / "ladder", ladder)
    return load_ladder(out / "ladder")


def _start(config: Config, start: Ladder) -> tuple[AbstractNetwork, ...]:
    """The networks to begin with: those of an earlier ladder where it has one of the same sizes."""
    there = dict(zip(start.config.levels, start.networks, strict=True))
    agree = ("shape", "prediction", "process", "classes")
    differ = [name for name in agree if getattr(config, name) != getattr(start.config, name)]
    if differ or start.config.levels[-1] != config.levels[-1]:
        raise ValueError(
            "The ladder to start from must have the same finest level, shape, prediction, process and "
            f"classes as the configuration. Its finest level is {start.config.levels[-1]}, the configuration's "
            f"{config.levels[-1]}" + (f"; {', '.join(differ)} differ too." if differ else ".")
        )
    if not config.training.match_steps:
        raise ValueError("Starting from an earlier ladder is for matching; write match_steps of at least 1.")
    return tuple(
        there.get(level, fresh) for level, fresh in zip(config.levels, config.networks(), strict=True)
    )


def _write_losses(path: Path, num_levels: int, stages: list[tuple[str, int, int, np.ndarray]]) -> None:
    """A row per stage and window of steps, with the stage's levels filled in. A stage is its name, its
    steps, its first level's column and its history."""
    lines = [",".join(["stage", "step", *(f"level_{k + 1}" for k in range(num_levels))])]
    for stage, steps, first, history in stages:
        for i, row in enumerate(history):
            cells = [""] * num_levels
            cells[first : first + len(row)] = [f"{loss:.6f}" for loss in row]
            lines.append(",".join([stage, str(min((i + 1) * HISTORY_EVERY, steps)), *cells]))
    write_text_safely(path, "\n".join(lines) + "\n")
