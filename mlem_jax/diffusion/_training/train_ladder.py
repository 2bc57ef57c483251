"""Trains a ladder: the finest level first, then the others, distilled from it."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from ..._calibration import Calibration
from ..._io import write_text_safely
from .._data import data_fingerprint, Images
from .._ladder import (
    as_stored,
    calibrate_ladder,
    Config,
    count_flops,
    count_parameters,
    Ladder,
    load_ladder,
    METHODS,
    read_config,
    save_ladder,
)
from .._network import AbstractNetwork
from .batches import check_labels, held_out_losses, Labelled
from .board import check_tensorboard, open_board
from .run import begin_run, check_room, config_of_decay, DataIdentity, LADDER, ladder_of_decay
from .sheets import Sheets
from .snapshots import Snapshots
from .step import HISTORY_EVERY
from .train import Averages, train_networks, Watch

# On which steps are fitted: with fewer, held-out pilots reject much of what images allow (benchmarks/fitted.py).
_FIT_PILOTS = 128
# Of a run that is not finished.
_CALIBRATIONS = "calibrations"


def train_ladder(
    config: Config | str | Path,
    out: str | Path,
    images: Images,
    held_out: Images,
    *,
    labels: Int[np.ndarray, " n"] | None = None,
    held_out_labels: Int[np.ndarray, " m"] | None = None,
    start: Ladder | None = None,
    pilots: int = 128,
    progress: bool = True,
    data_name: str = "images in memory",
) -> Ladder:
    """Trains all levels of a configuration, or of its TOML file, and writes the ladder to `out/ladder`.

    With `start`, an earlier ladder, its finest level is kept unchanged and only the smaller levels are matched
    (distilled). Levels that the earlier ladder also has start from its parameters. The card then records their
    distance to the finest level before.

    At the end the ladder is calibrated on `pilots` images for plans of the probability flow, with first- and
    second-order steps, and of the reverse SDE. A few images in a hundred, which end elsewhere, dominate the RMS error;
    with fewer pilots its estimate would be too noisy. For the probability flow [`mlem_jax.fit_steps`][] also fits steps
    of all costs on 128 further images, for a single level too. With 0 pilots nothing is calibrated: call
    [`mlem_jax.diffusion.calibrate_ladder`][], which has more settings.

    A configuration with classes needs the labels of both sets of images. Its ladder is calibrated for labels drawn
    uniformly and no guidance.

    Checkpoints go to `out/finest` and `out/smaller` every half minute, and on SIGINT (Ctrl-C) and SIGTERM; the same
    call after an interruption continues from them and ends with the same numbers. Finished parts of calibrations are
    not measured again. Once the ladder exists it is only loaded, unless the configuration has more steps than
    before: the run is then made longer, and the old ladder is moved to `out/ladder-STEPS`. `out/losses.csv` has the
    loss curves, `out/sheets` a picture and the held-out losses of every `sheet_every` steps, and with `snapshots`
    `out/snapshots` these networks, as ladders. With `tensorboard` both are in `out/tensorboard` too. Averages of
    `more_ema_decays` become ladders in `out/ladder-ema-DECAY`, which are not calibrated. `data_name` is what messages
    call the data, such as its path.

    Raises `ValueError` if `out` was begun with another configuration or with other data, if the levels are not in the
    order of their FLOPs or one cannot represent an image, if the images or labels do not fit them, or if the finest
    level of `start` is of other sizes; `FloatingPointError` if a loss is not finite; `OSError` where the disk has no
    room; `ModuleNotFoundError` where the extra `tensorboard` is wanted and missing; `KeyboardInterrupt` on a signal,
    when everything is saved.
    """
    out = Path(out)
    described = "the configuration" if isinstance(config, Config) else str(config)
    config = config if isinstance(config, Config) else read_config(config)
    check_tensorboard(config.training.tensorboard)
    check_labels(config.classes, labels, len(images))
    check_labels(config.classes, held_out_labels, len(held_out), what="held-out images")
    networks = config.networks() if start is None else _start(config, start)
    _check_levels(config, networks, described)
    if not len(held_out) or held_out.shape[1:] != config.shape:
        raise ValueError(
            f"The held-out images are an array of shape {held_out.shape}; at least one image of shape "
            f"{config.shape} is needed."
        )
    code = data_fingerprint(images, held_out, labels, held_out_labels)
    begin_run(out, config, DataIdentity(data_name, code, len(images), len(held_out)))
    if (out / LADDER).is_dir():
        return load_ladder(out / LADDER)
    check_room(out, networks, len(config.training.ema_decays))
    test = (held_out, held_out_labels)
    averages = _train(config, networks, out, (images, labels), test, start is None, progress)
    for decay, trained in zip(config.training.more_ema_decays, averages[1:], strict=True):
        described_so = config_of_decay(config, decay)
        card = _card(described_so, networks, trained, test, len(images), start is not None)
        place = ladder_of_decay(out, decay)
        # Of a run that was stopped after it was written.
        if not place.is_dir():
            save_ladder(place, Ladder(trained, described_so, card, {}))
    trained = averages[0]
    card = _card(config, networks, trained, test, len(images), start is not None)
    ladder = Ladder(trained, config, card, {})
    if pilots:
        ladder = _calibrated(ladder, out / _CALIBRATIONS, pilots, progress)
    save_ladder(out / LADDER, ladder)
    shutil.rmtree(out / _CALIBRATIONS, ignore_errors=True)
    return load_ladder(out / LADDER)


def _calibrated(ladder: Ladder, folder: Path, pilots: int, progress: bool) -> Ladder:
    """The ladder with its calibrations. Each and its parts are kept in the folder once they are measured, so that an
    interrupted run does not measure them again."""
    wanted: dict[str, dict[str, Any]] = {
        "ode": {},
        "ode_2": {"method": METHODS[1], "fit_pilots": _FIT_PILOTS},
        "sde": {"sde": True},
    }
    folder.mkdir(exist_ok=True)
    calibrations = {}
    for kind, settings in wanted.items():
        path = folder / f"{kind}_{pilots}.npz"
        levels = ladder.term(sde=settings.get("sde", False)).levels
        found = Calibration.load(path) if path.is_file() else None
        if found is None or found.mismatch(levels, np.zeros(ladder.shape)) is not None:
            # What the methods of an equation have in common is measured once.
            like = calibrations.get("ode") if kind == "ode_2" else None
            found = calibrate_ladder(
                ladder, pilots=pilots, like=like, keep_in=folder / "parts", progress=progress, **settings
            )
            found.save(path)
        calibrations[kind] = found
    return dataclasses.replace(ladder, calibrations=calibrations)


def _train(
    config: Config,
    networks: tuple[AbstractNetwork, ...],
    out: Path,
    data: Labelled,
    held_out: Labelled,
    with_finest: bool,
    progress: bool,
) -> Averages:
    """The trained networks of each decay, rounded as they will be stored: a calibration belongs to the exact numbers in
    its levels."""
    training = config.training

    def stage(name: str, networks: tuple[AbstractNetwork, ...], steps: int, peak: float, teacher=None):
        numbers = range(1, len(config.levels) + 1)
        kept = slice(-1, None) if name == "finest" else slice(None, -1)
        with open_board(training.tensorboard, out / "tensorboard" / name, numbers[kept]) as board:
            watches: list[Watch] = [Sheets(out / "sheets", name, config, *held_out, board=board)]
            if training.snapshots:
                watches.append(Snapshots(out / "snapshots", name, config, config.levels[kept]))

            def watch(step: int, averages: Averages) -> None:
                for look in watches:
                    look(step, averages)

            return train_networks(
                config,
                networks,
                data[0],
                out / name,
                steps=steps,
                peak_learning_rate=peak,
                labels=data[1],
                teacher=teacher,
                label=f"{name} level" + ("s" if name == "smaller" else ""),
                progress=progress,
                watch=watch if training.sheet_every else None,
                record=None if board is None else board.losses,
            )

    all_finest, finest_history = (networks[-1:],) * len(training.ema_decays), np.zeros((0, 1), np.float32)
    if with_finest:
        all_finest, finest_history = stage("finest", networks[-1:], training.steps, training.learning_rate)
    (finest,) = all_finest[0]
    if training.match_steps:
        steps, peak, teacher = training.match_steps, training.match_learning_rate, finest
    else:
        steps, peak, teacher = training.steps, training.learning_rate, None
    all_smaller, smaller_history = stage("smaller", networks[:-1], steps, peak, teacher)
    stages = [
        ("finest", training.steps, len(networks) - 1, finest_history),
        ("smaller", steps, 0, smaller_history),
    ]
    _write_losses(out / "losses.csv", len(networks), stages)
    pairs = zip(all_smaller, all_finest, strict=True)
    return tuple(tuple(map(as_stored, (*smaller, *finest))) for smaller, finest in pairs)


def _check_levels(config: Config, networks: tuple[AbstractNetwork, ...], described: str) -> None:
    flops = [count_flops(network) for network in networks]
    if flops != sorted(flops):
        raise ValueError(
            f"The levels of {described} take {[round(f) for f in flops]} FLOPs per image; write them "
            "cheapest first."
        )
    for k, level in enumerate(config.levels):
        if level.input_skip is False and level.needs_input_skip(config.shape):
            raise ValueError(
                f"[[levels]] number {k + 1} of {described} is too narrow (width {level.width}) to represent an image "
                f"of shape {config.shape}, and has input_skip = false. Leave input_skip out, or write a larger width."
            )


def _card(
    config: Config,
    networks: tuple[AbstractNetwork, ...],
    trained: tuple[AbstractNetwork, ...],
    held_out: Labelled,
    count: int,
    matched_on: bool,
) -> dict[str, Any]:
    """Measurements after training, of networks that started as `networks`."""
    card = {
        "name": config.name,
        "parameters": [count_parameters(n) for n in trained],
        "flops_per_image": [count_flops(network) for network in trained],
        "held_out_loss": held_out_losses(config, trained, *held_out),
        "held_out_images": len(held_out[0]),
        "training_images": count,
        "jax": jax.__version__,
    }
    if matched_on:
        before = held_out_losses(config, (*networks[:-1], trained[-1]), *held_out)
        card["to_finest_before"] = before["to_finest"]
    return card


def _start(config: Config, start: Ladder) -> tuple[AbstractNetwork, ...]:
    """The networks at the start: those of an earlier ladder where it has a level of the same sizes."""
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
