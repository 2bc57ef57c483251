"""What the commands read: a ladder, a calibration, labels and scales; with errors in the command line's words."""

from pathlib import Path
from typing import Any

import numpy as np


def read_ladder(checkpoint: Path | None) -> Any:
    """The ladder in a folder, or one folder deeper, where train puts it; without a folder the shipped one."""
    from ..diffusion import load_ladder

    if checkpoint is None:
        return load_ladder()
    inside = checkpoint / "ladder"
    return load_ladder(inside if inside.is_dir() else checkpoint)


def read_scales(ladder: Any, guidance: list[float] | None) -> float | list[float] | None:
    """The scale of guidance, or one for each level. Raises `ValueError`."""
    if not guidance:
        return None
    if ladder.classes is None:
        raise ValueError(
            "--guidance is for a ladder with classes, and this one was trained without. Leave it out."
        )
    count = len(ladder.networks)
    if len(guidance) not in (1, count):
        raise ValueError(
            f"--guidance was given {len(guidance)} times for {count} levels; give it once for all, or {count} times."
        )
    return guidance[0] if len(guidance) == 1 else guidance


def make_labels(ladder: Any, label: int | None, n: int) -> np.ndarray | None:
    """A label for each image: the one given, or the classes one after another. Raises `ValueError`."""
    classes = ladder.classes
    if classes is None:
        if label is not None:
            raise ValueError(
                "--label is for a ladder with classes, and this one was trained without. Leave it out."
            )
        return None
    if label is not None and not 0 <= label <= classes:
        raise ValueError(
            f"--label {label}: this ladder has {classes} classes; 0 to {classes - 1} are expected, or {classes} for no "
            "label."
        )
    return np.arange(n, dtype=np.int32) % classes if label is None else np.full(n, label, np.int32)


def make_plan(
    ladder: Any,
    *,
    checkpoint: Path | None,
    file: Path | None,
    sde: bool,
    scales: float | list[float] | None,
    given_scales: list[float] | None,
    budget: float | None,
    error: float | None,
    in_seconds: bool,
) -> Any:
    """The plan from a calibration's file, or from those that the ladder was saved with. Raises `ValueError`."""
    measure = calibrate_command(checkpoint, sde, given_scales)
    if file is not None:
        found = _read_calibration(file, measure, ladder, sde, scales)
        return found.plan(budget=budget, error=error, in_seconds=in_seconds)
    if scales is not None:
        raise ValueError(
            "The calibration that the ladder was saved with is without guidance. Measure one with "
            f"'{measure}', and add --calibration FILE.npz."
        )
    kind = "sde" if sde else "ode"
    if not any(there.startswith(kind) for there in ladder.calibrations):
        raise ValueError(
            f"The ladder was saved without a calibration of the {'reverse SDE' if sde else 'probability flow'}. "
            f"Measure one with '{measure}', and add --calibration FILE.npz."
        )
    return ladder.plan(budget=budget, error=error, sde=sde, in_seconds=in_seconds)


def calibrate_command(checkpoint: Path | None, sde: bool, guidance: list[float] | None) -> str:
    """The command that measures what a plan needs."""
    return "python -m mlem_jax calibrate" + common_options(checkpoint, sde, guidance) + " --out FILE.npz"


def common_options(checkpoint: Path | None, sde: bool, guidance: list[float] | None) -> str:
    """The options that calibrate and sample have to agree in, as they are written."""
    options = "" if checkpoint is None else f" --checkpoint {checkpoint}"
    return options + (" --sde" if sde else "") + "".join(f" --guidance {scale}" for scale in guidance or ())


def _read_calibration(
    file: Path, measure: str, ladder: Any, sde: bool, scales: float | list[float] | None
) -> Any:
    import jax.numpy as jnp

    from .._calibration.calibration import Calibration

    if file.is_dir() or not file.exists():
        what = "a folder" if file.is_dir() else "not there"
        raise ValueError(f"--calibration {file} is {what}. Measure a calibration with '{measure}'.")
    try:
        found = Calibration.load(file)
    except ValueError as error:
        raise ValueError(
            f"--calibration {file} is not a calibration, or damaged. Measure it with '{measure}'."
        ) from error
    differs = found.mismatch(ladder.term(sde=sde, guidance=scales).levels, jnp.zeros(ladder.shape))
    if differs is not None:
        raise ValueError(f"{differs} Measure one for this ladder and these options with '{measure}'.")
    return found
