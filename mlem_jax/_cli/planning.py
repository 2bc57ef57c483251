"""The options of `sample` that decide the steps: a plan from a calibration, or any number of steps without one."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from .._calibration import Calibration
from .inputs import apply_scales
from .options import one_of
from .single_steps import check_single_steps, single_steps_plan


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What decides the steps, as the options of these names say. Raises `ValueError` for options that exclude each
    other."""

    sde: bool
    budget: float | None
    error: float | None
    in_seconds: bool
    calibration: Path | None
    steps: int | None
    method: str | None
    spacing: str | None
    level: int | None

    def __post_init__(self) -> None:
        planned = {"--budget": self.budget, "--error": self.error, "--calibration": self.calibration}
        details = {"--method": self.method, "--spacing": self.spacing, "--level": self.level}
        check_single_steps(self.steps, details, planned)
        one_of(self.budget, self.error, self.sde)

    def plan(
        self, ladder: Any, scales: float | list[float] | None, options: str, settings: dict[str, Any]
    ) -> Any:
        """The plan; `options` are those of the command that measures a calibration, `settings` further ones of a plan
        from one. Raises `ValueError`."""
        if self.steps is not None:
            return single_steps_plan(ladder, self.steps, self.method, self.spacing, self.level)
        budget = one_of(self.budget, self.error, self.sde)
        settings = {"budget": budget, "error": self.error, "in_seconds": self.in_seconds, **settings}
        measure = f"python -m mlem_jax calibrate{options} --out FILE.npz"
        file, sde = self.calibration, self.sde
        if file is not None and file.is_dir():
            calibrated = _read_calibrations(file, measure, apply_scales(ladder, scales), sde)
            return calibrated.plan(sde=sde, **settings)
        if file is not None:
            return _read_calibration(file, measure, ladder, sde, scales).plan(**settings)
        _check_saved(ladder, measure, sde, scales)
        return ladder.plan(sde=sde, **settings)


def _check_saved(ladder: Any, measure: str, sde: bool, scales: float | list[float] | None) -> None:
    """Raises `ValueError` unless the ladder was saved with a calibration of this equation, and is not guided."""
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
