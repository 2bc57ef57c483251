"""What the commands read: a ladder, labels and scales; with errors in the command line's words."""

from pathlib import Path
from typing import Any

import numpy as np


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
