"""The study of quality on one ladder: what all methods are judged with, and their rows."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _methods import Shared
from _quality_fits import Fits
from _quality_images import Entry, Made, Maker
from _quality_measures import distances, Eye, MEASURES, SHORT, Target, Views
from _quality_methods import (
    converged,
    Effort,
    fitted,
    of_catalogue,
    plans,
    rivals,
    single_networks,
    small_networks,
    switched,
)
from _quality_report import TARGETS
from jaxtyping import Float

import mlem_jax as ml
from mlem_jax.diffusion import Ladder

# The noise of the methods, of the images they are compared with, and of the choice for the distribution.
NOISE, OTHER, SEARCH = 70, 71, 72
MOST_COST = 8.0


class Amount(NamedTuple):
    """Images of a method and of the choice for the distribution; steps of the converged sampler; pilots of the fits."""

    images: int
    searched: int
    steps: int
    pilots: int


class Study:
    """Images of all methods on a ladder, compared with the converged sampler's and with real ones, of which there are
    at least as many. Images and fits are kept in a folder; after `minutes` the study stops between two blocks."""

    def __init__(
        self,
        ladder: Ladder,
        problem: Shared,
        amount: Amount,
        effort: Effort,
        *,
        eye: Eye,
        real: Float[np.ndarray, "n h w c"],
        folder: Path,
        minutes: float = np.inf,
    ):
        self.ladder, self.problem, self.amount, self.effort, self.eye = ladder, problem, amount, effort, eye
        self.sde = problem.diffusion is not None
        self.maker = Maker(problem, folder / "images", until=time.monotonic() + 60 * minutes)
        self.fits = Fits(ladder, folder / "fits", pilots=amount.pilots)
        self.real = real[: amount.images]
        self.reference = converged(problem, ladder, amount.steps)
        self._few: Views | None = None

    def entries(self, steps: ml.FittedSteps | None) -> Iterator[Entry]:
        """All methods; fits are made when their turn comes."""
        yield from rivals(self.problem, self.ladder, self.effort)
        if not self.sde:
            if steps is not None:
                yield from of_catalogue(self.problem, self.fits, self.effort, steps, MOST_COST)
            yield from single_networks(self.problem, self.fits, self.effort, steps, self._apart)
        yield from plans(self.ladder, self.problem, self.effort)
        if not self.sde:
            yield from small_networks(self.problem, self.fits, self.effort)
            yield from switched(self.problem, self.fits, self.effort)

    def _apart(self, table: ml.MultistepCoefficients) -> float:
        """Mean logarithm of the measures of the finest level with these steps, on few images."""
        few = min(self.amount.searched, self.amount.images)
        if self._few is None:
            self._few = self.eye.look(self.maker.images(self.reference, few, SEARCH).images)
        entry = fitted("search", self.problem, (self.fits.finest,), table)
        mine = self.eye.look(self.maker.images(entry, few, SEARCH).images)
        return float(np.mean(np.log(distances(mine, self._few))))

    def run(self, steps: ml.FittedSteps | None) -> dict[str, Any]:
        """Makes and judges the images. Raises `OutOfTime`."""
        mine = self.maker.images(self.reference, self.amount.images, NOISE)
        other = self.maker.images(self.reference, self.amount.images, OTHER)
        same = self.eye.look(mine.images)
        sets = (same, self.eye.look(other.images), self.eye.look(self.real))
        targets = {name: Target(views, same) for name, views in zip(TARGETS, sets, strict=True)}
        rows, shown = [], [(self.reference, mine)]
        for entry in self.entries(steps):
            made = self.maker.images(entry, self.amount.images, NOISE)
            rows.append(self._row(entry, made, mine.images, targets))
            shown.append((entry, made._replace(images=made.images[:16].copy())))
            tell(rows[-1])
        return {
            "problem": self.problem.name,
            "images": self.amount.images,
            "converged_steps": self.amount.steps,
            "floors": {
                name: dict(zip(MEASURES, target.floor.tolist(), strict=True))
                for name, target in targets.items()
            },
            "rows": rows,
            "shown": shown,
        }

    def _row(self, entry: Entry, made: Made, mine: np.ndarray, targets: dict[str, Target]) -> dict[str, Any]:
        views = self.eye.look(made.images)
        apart = np.sqrt(np.mean((made.images - mine).reshape(len(mine), -1).astype(float) ** 2, axis=1))
        row: dict[str, Any] = {
            "method": entry.kind,
            "setting": entry.method.setting,
            "cost": made.cost,
            "path_error": float(np.exp(np.mean(np.log(apart + 1e-12)))),
        }
        for name, target in targets.items():
            judged = target.judge(views)
            for i, measure in enumerate(MEASURES):
                key = f"{SHORT[measure]}_to_{name}"
                row[key] = float(judged.distance[i])
                row[f"{key}_excess"] = float(judged.excess[i])
                row[f"{key}_error"] = float(judged.error[i])
        return row


def tell(row: dict[str, Any]) -> None:
    words = "  ".join(
        f"{short} {row[f'{short}_to_same_excess']:+.4f} ± {row[f'{short}_to_same_error']:.4f}"
        for short in SHORT.values()
    )
    print(
        f"{row['method'][:40]:40s} cost {row['cost']:5.2f}  path {row['path_error']:.4f}  {words}", flush=True
    )
