"""What the commands read: a ladder, a calibration, labels and scales; with errors in the command line's words."""

from pathlib import Path
from typing import Any

import numpy as np

from .._calibration import Calibration


def read_ladder(checkpoint: Path | None) -> Any:
    """The ladder in a folder, or one folder deeper, where train puts it; without a folder the shipped one."""
    from ..diffusion import load_ladder

    if checkpoint is None:
        return load_ladder()
    inside = checkpoint / "ladder"
    try:
        return load_ladder(inside if inside.is_dir() else checkpoint)
    except FileNotFoundError as error:
        # In the words of the command line; load_ladder itself names a missing file of a ladder.
        if (checkpoint / "ladder.toml").is_file() or inside.is_dir():
            raise
        raise FileNotFoundError(
            f"{checkpoint} is not a ladder: it has no ladder.toml. 'python -m mlem_jax train --out FOLDER' makes one, "
            "which --checkpoint FOLDER then names."
        ) from error


def ladder_folder(path: Path) -> Path | None:
    """The folder of a ladder that is this one or inside it, if there is one."""
    return next((place for place in (path, path / "ladder") if (place / "ladder.toml").is_file()), None)


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


def apply_scales(ladder: Any, scales: float | list[float] | None, negative: int | None = None) -> Any:
    """The ladder whose levels are guided, away from a negative label or from none. Raises `ValueError`."""
    if scales is None:
        return ladder
    from ..diffusion import Guided, PredictorLadder

    levels = ladder.predictors(guidance=scales)
    if negative is not None:
        if negative > ladder.classes:
            raise ValueError(
                f"--negative {negative}: this ladder has {ladder.classes} classes; 0 to {ladder.classes - 1} are "
                "expected."
            )
        each = scales if isinstance(scales, list) else [scales] * len(levels)
        pairs = zip(ladder.networks, each, strict=True)
        levels = [ladder.config.predictor(Guided(network, scale, negative)) for network, scale in pairs]
    return PredictorLadder(
        levels, shape=ladder.shape, classes=ladder.classes, costs=ladder.level_costs(guided=True)
    )


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
    file: Path | None,
    sde: bool,
    scales: float | list[float] | None,
    options: str,
    budget: float | None,
    error: float | None,
    in_seconds: bool,
    settings: dict[str, Any],
) -> Any:
    """The plan from a calibration's file or folder, or from those that the ladder was saved with; `options` are those
    of the command that measures one, `settings` further ones of the plan. Raises `ValueError`."""
    settings = {"budget": budget, "error": error, "in_seconds": in_seconds, **settings}
    measure = f"python -m mlem_jax calibrate{options} --out FILE.npz"
    if file is not None and file.is_dir():
        calibrated = _read_calibrations(file, measure, apply_scales(ladder, scales), sde)
        return calibrated.plan(sde=sde, **settings)
    if file is not None:
        found = _read_calibration(file, measure, ladder, sde, scales)
        return found.plan(**settings)
    from ..diffusion import PredictorLadder

    if isinstance(ladder, PredictorLadder):
        raise ValueError(
            f"These levels come without a calibration. Measure one with '{measure}', and add --calibration "
            "FILE.npz; or write --steps N for steps of the finest network alone."
        )
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
    return ladder.plan(sde=sde, **settings)


def common_options(
    checkpoint: Path | None, sde: bool, guidance: list[float] | None, negative: int | None
) -> str:
    """The options that calibrate and sample have to agree in, as they are written."""
    away = "" if negative is None else f" --negative {negative}"
    options = "" if checkpoint is None else f" --checkpoint {checkpoint}"
    scales = "".join(f" --guidance {scale}" for scale in guidance or ())
    return options + (" --sde" if sde else "") + scales + away


def _read_calibration(
    file: Path, measure: str, ladder: Any, sde: bool, scales: float | list[float] | None
) -> Any:
    if not file.exists():
        raise ValueError(f"--calibration {file} is not there. Measure a calibration with '{measure}'.")
    try:
        found = Calibration.load(file)
    except ValueError as error:
        raise ValueError(
            f"--calibration {file} is not a calibration, or damaged. Measure it with '{measure}'."
        ) from error
    differs = found.mismatch(ladder.term(sde=sde, guidance=scales).levels, np.zeros(ladder.shape))
    if differs is not None:
        raise ValueError(f"{differs} Measure one for this ladder and these options with '{measure}'.")
    return found


def _read_calibrations(folder: Path, measure: str, ladder: Any, sde: bool) -> Any:
    """The ladder with the calibrations of a folder that are of this equation."""
    from ..diffusion._ladder import read_calibrations

    remedy = f"Measure it with '{measure.replace('FILE.npz', 'FOLDER')}'."
    try:
        found = read_calibrations(folder)
    except ValueError as error:
        raise ValueError(
            f"--calibration {folder} has a file that is not a calibration, or damaged. {remedy}"
        ) from error
    kind = "sde" if sde else "ode"
    if not any(there.startswith(kind) for there in found):
        raise ValueError(
            f"--calibration {folder} has no calibration of the {'reverse SDE' if sde else 'probability flow'}. {remedy}"
        )
    levels = ladder.term(sde=sde).levels
    for name, calibration in found.items():
        differs = calibration.mismatch(levels, np.zeros(ladder.shape)) if name.startswith(kind) else None
        if differs is not None:
            raise ValueError(f"{differs} Measure one for these levels and options with '{measure}'.")
    return ladder.with_calibrations(found)
