"""What ladders have in common: the terms, calibrations and plans of their levels."""

import abc
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
from jaxtyping import PyTree

from ..._calibration import best_of, Calibration, FittedPlan, Plan, UnreachableError
from ..._io import make_writable
from ..._solver import AbstractMethod
from ..._term import MultilevelTerm
from .._predictor import NoisePredictor, ProbabilityFlow, ReverseDrift
from .._process import AbstractProcess
from .methods import calibration_name, METHODS

# One scale for all levels, or one for each level.
Guidance = float | int | Sequence[float | int]
_Ladder = TypeVar("_Ladder", bound="AbstractLadder")
_PREFIX = "calibration_"


class AbstractLadder(abc.ABC):
    """Levels of growing size, cheapest first, that sample the same images: [`mlem_jax.diffusion.Ladder`][] of networks
    trained here, [`mlem_jax.diffusion.PredictorLadder`][] of any others.

    - `calibrations`: of the probability flow (`"ode"`) and of the reverse SDE (`"sde"`) for
        [`mlem_jax.EulerMaruyama`][], and for [`mlem_jax.AdamsBashforth`][] (`"ode_2"`, `"sde_2"`); as far as
        they were measured.
    """

    calibrations: dict[str, Calibration]
    # Sentences that are printed with its calibrations.
    remarks: tuple[str, ...] = ()

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""

    @property
    @abc.abstractmethod
    def process(self) -> AbstractProcess:
        """The process that defines the range of `s` and the grids of sampling."""

    @property
    @abc.abstractmethod
    def classes(self) -> int | None:
        """Number of classes, if labels are integers from 0 to `classes - 1`."""

    @property
    @abc.abstractmethod
    def labels(self) -> PyTree:
        """Labels from which those of pilots are drawn: arrays with a leading axis; `None` if levels take none."""

    @property
    @abc.abstractmethod
    def seed(self) -> int:
        """Seed from which that of the pilots is derived."""

    @abc.abstractmethod
    def predictors(self, *, guidance: Guidance | None = None) -> tuple[NoisePredictor, ...]:
        """The levels as predictions of the noise. Raises `ValueError` for guidance of levels that cannot be guided."""

    @abc.abstractmethod
    def level_costs(self, *, guided: bool = False) -> tuple[float, ...]:
        """Cost of one evaluation of each level on one image."""

    @abc.abstractmethod
    def with_calibrations(self: _Ladder, calibrations: dict[str, Calibration]) -> _Ladder:
        """The same ladder with these calibrations instead of its own."""

    def term(self, *, sde: bool = False, guidance: Guidance | None = None) -> MultilevelTerm:
        """The multilevel drift of sampling: the probability flow, or with `sde=True` the reverse SDE's
        (add [`mlem_jax.diffusion.reverse_diffusion`][] for the noise). Costs are FLOPs per image.

        Raises `ValueError` for guidance without classes or with another number of scales than levels."""
        levels = self._drifts(sde, guidance)
        return MultilevelTerm(*levels, costs=self.level_costs(guided=guidance is not None))

    def _drifts(
        self, sde: bool, guidance: Guidance | None = None
    ) -> tuple[ProbabilityFlow | ReverseDrift, ...]:
        drift = ReverseDrift if sde else ProbabilityFlow
        return tuple(map(drift, self.predictors(guidance=guidance)))

    def calibration(
        self,
        *,
        sde: bool = False,
        method: AbstractMethod = METHODS[0],  # noqa: B008 (immutable)
    ) -> Calibration:
        """The calibration for a method, without guidance. Raises `ValueError` if the ladder was saved without it."""
        kind = calibration_name(sde, method)
        if kind not in self.calibrations:
            raise ValueError(
                f"This ladder has no calibration {kind!r}, only {sorted(self.calibrations)}. Measure it with "
                f"calibrate_ladder(ladder, sde={sde}, method=mlem_jax.{method})."
            )
        return self.calibrations[kind]

    def plan(
        self,
        *,
        budget: float | int | None = None,
        error: float | int | None = None,
        sde: bool = False,
        **settings: Any,
    ) -> Plan | FittedPlan:
        """The best plan of all methods that the ladder has calibrations for, and of fitted steps: the most
        accurate one for a `budget`, the cheapest one for an `error`. Arguments and errors as for
        [`mlem_jax.Calibration.plan`][]."""
        there = [
            method for method in METHODS if calibration_name(sde, method) in self.calibrations
        ] or METHODS[:1]
        found: list[Plan | FittedPlan] = []
        refusals: list[ValueError] = []
        calibrations = [self.calibration(sde=sde, method=method) for method in there]
        # Fitted steps are of no method: whichever calibration has them, plans of each are compared with them.
        fitted = next((one.fitted for one in calibrations if one.fitted is not None), None)
        for calibration in calibrations:
            calibration.require(self._drifts(sde), jnp.zeros(self.shape))
            if calibration.fitted is None:
                calibration = dataclasses.replace(calibration, fitted=fitted)
            try:
                found.append(calibration.plan(budget=budget, error=error, **settings))
            except ValueError as refusal:
                refusals.append(refusal)
        if not found:
            unreachable = [refusal for refusal in refusals if isinstance(refusal, UnreachableError)]
            raise min(unreachable, key=lambda refusal: refusal.least, default=refusals[0])
        return best_of(found, for_error=error is not None)

    def save_calibrations(self, folder: str | Path) -> None:
        """Writes each calibration into a folder, as `calibration_ode.npz` and so on, which is made where it is missing.

        Raises `FileExistsError` rather than replace one of these files, `OSError` for a place that cannot be written
        or a full disk."""
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder} is a file; choose another place for the folder of calibrations.")
        paths = {kind: folder / f"{_PREFIX}{kind}.npz" for kind in self.calibrations}
        for path in paths.values():
            if path.exists():
                raise FileExistsError(f"{path} exists already; choose another folder or move it away.")
        make_writable(folder, "Choose another folder.")
        for kind, path in paths.items():
            self.calibrations[kind].save(path)

    def load_calibrations(self: _Ladder, folder: str | Path) -> _Ladder:
        """The same ladder with the calibrations that `save_calibrations` wrote.

        Raises `FileNotFoundError` for a folder without calibrations, `ValueError` for a damaged file and for
        calibrations of other levels, or with guidance of a ladder that was calibrated without."""
        found = read_calibrations(folder)
        if not found:
            raise FileNotFoundError(
                f"{folder} has no calibrations. Measure them: "
                "mlem_jax.diffusion.calibrate_methods(ladder).save_calibrations(FOLDER)."
            )
        for kind, calibration in found.items():
            calibration.require(self._drifts(kind.startswith("sde")), jnp.zeros(self.shape))
        return self.with_calibrations(found)


def read_calibrations(folder: str | Path) -> dict[str, Calibration]:
    """All calibrations in a folder, by kind. Raises `ValueError` for a damaged file."""
    files = sorted(Path(folder).glob(f"{_PREFIX}*.npz"))
    return {path.stem.removeprefix(_PREFIX): Calibration.load(path) for path in files}
