"""The folder of a training run: its description, and whether another call may continue it.

config.toml        the description of the ladder
run.json           the data it is trained on, and the description it was begun with
finest, smaller    checkpoints
ladder             the result; ladder-ema-DECAY for averages of another decay
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..._io import make_writable, write_text_safely
from .._ladder import Config, config_text, count_parameters, parse_config
from .._network import AbstractNetwork
from .checkpoints import checkpoint_bytes

STAGES = ("finest", "smaller")
LADDER = "ladder"
_CONFIG, _RUN = "config.toml", "run.json"
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class DataIdentity:
    """The data of a run: a name for messages, and a fingerprint of images and labels."""

    name: str
    fingerprint: str
    images: int
    held_out: int

    def __str__(self) -> str:
        return f"{self.name} ({self.images:,} images and {self.held_out:,} held out)"


def begin_run(out: Path, config: Config, data: DataIdentity) -> None:
    """Creates the folder of a run, or accepts an existing one of the same configuration and data that has the same
    number of steps or fewer. The ladders of a run that is made longer are moved to `ladder-STEPS` and so on.

    A folder without a checkpoint or a ladder is begun anew.

    Raises `ValueError` for a run of other data, of another configuration or of more steps, `OSError` where the folder
    cannot be written.
    """
    make_writable(out, "Choose another folder.")
    if has_begun(out):
        there = _read(out / _RUN)
        if there is not None:
            _check_data(out, there[0], data)
            if _is_longer(out, there[1], config):
                for ladder in finished_ladders(out, there[1]):
                    os.rename(ladder, _free(ladder, there[1]))
    # The description twice, because config.toml is there to be edited.
    description = {"version": _VERSION, "data": dataclasses.asdict(data), "config": config_text(config)}
    write_text_safely(out / _RUN, json.dumps(description, indent=2) + "\n")
    write_text_safely(out / _CONFIG, config_text(config))


def has_begun(out: Path) -> bool:
    """Whether there is a checkpoint or a ladder."""
    return (out / LADDER).is_dir() or any(
        path.name.isdigit() for stage in STAGES for path in (out / stage).glob("*")
    )


def config_of_decay(config: Config, decay: float) -> Config:
    """The description of a ladder with the averages of a decay alone."""
    training = dataclasses.replace(config.training, ema_decay=decay, more_ema_decays=())
    return dataclasses.replace(config, training=training)


def ladder_of_decay(out: Path, decay: float) -> Path:
    """Where the ladder of one of `Training.more_ema_decays` is."""
    return out / f"{LADDER}-ema-{decay:g}"


def finished_ladders(out: Path, config: Config) -> list[Path]:
    """The ladders of a run, as far as they are there, that of `ema_decay` first."""
    places = [out / LADDER, *(ladder_of_decay(out, decay) for decay in config.training.more_ema_decays)]
    return [place for place in places if place.is_dir()]


def check_room(out: Path, networks: tuple[AbstractNetwork, ...], averages: int = 1) -> None:
    """Raises `OSError` where the disk has no room for the checkpoints and the ladders of a run that has not begun."""
    if has_begun(out):
        return
    parameters = sum(count_parameters(network) for network in networks)
    # The ladder holds two bytes a number.
    needed = checkpoint_bytes(parameters, averages) + 2 * averages * parameters
    free = shutil.disk_usage(out).free
    if free < needed:
        raise OSError(
            f"Training these networks writes up to {needed / 1e6:,.0f} MB to {out}, where {free / 1e6:,.0f} MB are "
            "free. Nothing was begun: make room, or choose another folder."
        )


def _read(path: Path) -> tuple[DataIdentity, Config] | None:
    """The data and configuration with which a run was begun; `None` for a run without `run.json`, which the first
    version did not write."""
    if not path.is_file():
        return None
    try:
        there = json.loads(path.read_text())
        known = {field.name for field in dataclasses.fields(DataIdentity)}
        data = DataIdentity(**{name: value for name, value in there["data"].items() if name in known})
        return data, parse_config(there["config"], path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Choose another folder for this run.") from error


def _check_data(out: Path, before: DataIdentity, now: DataIdentity) -> None:
    if before.fingerprint != now.fingerprint:
        raise ValueError(
            f"{out} was begun with other data: with {before}, and now {now} was given. Continue it with the data it "
            "was begun with, or choose another folder."
        )


def _is_longer(out: Path, before: Config, now: Config) -> bool:
    """Whether a run has more steps than the one before, and is otherwise the same. Raises `ValueError` if it is
    another one, or a shorter one."""
    counts = [(config.training.steps, config.training.match_steps) for config in (before, now)]
    shorter = any(b > n for b, n in zip(*counts, strict=True))
    longer = counts[0] != counts[1] and not shorter
    differ = _differences(before, now, leave_out={"name"})
    # The warm-up may depend on the number of steps; sheets change nothing.
    free = {"steps", "match_steps", "sheet_every", "snapshots", "tensorboard"} | (
        {"warmup_steps"} if longer else set()
    )
    differ += _differences(before.training, now.training, leave_out=free)
    if differ:
        raise ValueError(
            f"{out} was begun with another configuration, which differs in {'; '.join(differ)}. Continue with "
            f"{out / _CONFIG}, or choose another folder."
        )
    if shorter:
        raise ValueError(
            f"{out} was begun with another configuration: it has {counts[0][0]:,} steps and {counts[0][1]:,} of "
            f"matching, and fewer were asked for ({counts[1][0]:,} and {counts[1][1]:,}). A run can only be made "
            "longer; choose another folder."
        )
    return longer


def _differences(before: Any, now: Any, *, leave_out: set[str]) -> list[str]:
    names = [field.name for field in dataclasses.fields(before) if field.name not in leave_out | {"training"}]
    pairs = [(name, getattr(before, name), getattr(now, name)) for name in names]
    return [f"{name} (there {a}, now {b})" for name, a, b in pairs if a != b]


def _free(ladder: Path, before: Config) -> Path:
    """A free path for a ladder of a run that is made longer."""
    name = f"{ladder.name}-{before.training.steps}"
    names = (name, *(f"{name}-{n}" for n in range(2, 1000)))
    return next(ladder.with_name(name) for name in names if not ladder.with_name(name).exists())
