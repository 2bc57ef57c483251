"""Study 9: what does a picture cost? Distributions of many images at 0.8 to 8 evaluations of the finest network.

Run `python benchmarks/quality.py --quick` (2,048 images of each method) or `--full` (10,000), with `--sde` for the
reverse SDE; `--smoke` has few images and methods and writes no results. `--images N` sets the number, `--steps FILE`
takes another catalogue of fitted steps than the shipped one. Images and fits are kept in `--folder` as they are made,
so that an interrupted run continues; `--minutes M` interrupts it. Delete the folder after a change of the fit. Writes
`benchmarks/results/quality_ode.json`, a `.csv` table, a picture of the curves, a sheet of images, and the
picture of the project's README. Needs the Debian package dataset-fashion-mnist.

Each method makes the same number of images from the same noise. They are compared by three measures: the Frechet
distance of features of a small classifier trained here (not FID, whose formula it has), the Frechet distance of the 48
first principal components of the pixels, the sliced Wasserstein distance of the pixels. And with three sets:

- *same*: images of the converged sampler (the finest network with many steps) from the same noise. Both sets' sampling
  errors are nearly the same and cancel, so this is the estimate of the distance between the two distributions that
  tells methods apart; it compares sets, not image with image.
- *other*: the converged sampler's from other noise. Its own distance from there, with the methods' noise, is the floor;
  the study reports the excess over it, which for a few thousand images is as large as its standard error.
- *real*: held-out images, with the same floor.

Rivals are fitted as hard as ours (`_quality_fits.py`): the finest network alone with its grid searched for the path
and, apart from that, for the distribution; each smaller network alone; one network early and another late.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax.random as jr
import numpy as np
from _distribution import Classifier, train_classifier
from _harness import add_sizes, RESULTS, write_results, write_table
from _image_methods import image_problem
from _quality_fits import Fits
from _quality_images import Entry, Made, Maker, OutOfTime
from _quality_measures import distances, Eye, MEASURES, SHORT, Target, Views
from _quality_methods import (
    converged,
    EFFORTS,
    fitted,
    of_catalogue,
    plans,
    rivals,
    single_networks,
    small_networks,
    switched,
)
from _quality_report import curves, headline, report, sheet, TARGETS

import mlem_jax as ml
from mlem_jax._io import write_safely
from mlem_jax.diffusion import load_images, load_labels, load_ladder
from mlem_jax.plot import save_figure

# The noise of the methods, of the images they are compared with, and of the search for the distribution.
NOISE, OTHER, SEARCH = 70, 71, 72
MOST_COST = 7.0
# The picture of the project's README.
HEADLINE = Path(__file__).parents[1] / "docs" / "samples.png"


class Size(NamedTuple):
    """Images of a method and of the search for the distribution; steps of the converged sampler, for the probability
    flow and for the reverse SDE; training steps of the classifier; pilots of the fits."""

    images: int
    searched: int
    steps: dict[bool, int]
    classifier_steps: int
    pilots: int


SIZES = {
    "smoke": Size(64, 64, {False: 4, True: 4}, 20, 8),
    "quick": Size(2048, 128, {False: 16, True: 50}, 1500, 128),
    "full": Size(10_000, 1024, {False: 20, True: 50}, 3000, 128),
}


class Study:
    """What all methods are judged with."""

    def __init__(self, *, sde: bool, name: str, images: int | None, folder: Path, minutes: float):
        self.size, self.effort, self.sde = SIZES[name], EFFORTS[name], sde
        self.count = images or self.size.images
        self.ladder = load_ladder()
        self.problem = image_problem(self.ladder, sde, fine=256 if sde else None)
        self.maker = Maker(self.problem, folder / "images", until=time.monotonic() + 60 * minutes)
        self.fits = Fits(self.ladder, folder / "fits", pilots=self.size.pilots)
        train, labels = load_images(), load_labels()
        self.eye = Eye(self._classifier(folder / "classifier.eqx", train, labels), train)
        self.real = load_images(train=False)[: self.count]
        self.reference = converged(self.problem, self.ladder, self.size.steps[sde])
        self._few: Views | None = None

    def _classifier(self, path: Path, train: np.ndarray, labels: np.ndarray) -> Classifier:
        """That of an earlier run, or a new one."""
        if path.exists():
            return eqx.tree_deserialise_leaves(path, Classifier(jr.key(0)))
        model = train_classifier(train, labels, steps=self.size.classifier_steps)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safely(path, lambda file: eqx.tree_serialise_leaves(file, model))
        return model

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
        few = min(self.size.searched, self.count)
        if self._few is None:
            self._few = self.eye.look(self.maker.images(self.reference, few, SEARCH).images)
        entry = fitted("search", self.problem, (self.fits.finest,), table)
        mine = self.eye.look(self.maker.images(entry, few, SEARCH).images)
        return float(np.mean(np.log(distances(mine, self._few))))

    def run(self, steps: ml.FittedSteps | None) -> dict[str, Any]:
        """Makes and judges the images. Raises `OutOfTime`."""
        mine = self.maker.images(self.reference, self.count, NOISE)
        other = self.maker.images(self.reference, self.count, OTHER)
        same = self.eye.look(mine.images)
        sets = (same, self.eye.look(other.images), self.eye.look(self.real))
        targets = {name: Target(views, same) for name, views in zip(TARGETS, sets, strict=True)}
        rows, shown = [], [(self.reference, mine)]
        for entry in self.entries(steps):
            made = self.maker.images(entry, self.count, NOISE)
            rows.append(self._row(entry, made, mine.images, targets))
            shown.append((entry, made._replace(images=made.images[:16].copy())))
            tell(rows[-1])
        return {
            "problem": self.problem.name,
            "images": self.count,
            "converged_steps": self.size.steps[self.sde],
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


def catalogue(path: Path | None) -> ml.FittedSteps | None:
    """That in a file, or that of the shipped ladder."""
    return load_ladder().calibrations["ode_2"].fitted if path is None else ml.FittedSteps.load(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--sde", action="store_true", help="the reverse SDE instead of the probability flow")
    parser.add_argument("--images", type=int, help="of each method")
    parser.add_argument("--steps", type=Path, help="a catalogue of fitted steps")
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"), help="where images are kept")
    parser.add_argument(
        "--minutes",
        type=float,
        default=np.inf,
        help="stop after this many minutes; the same command continues",
    )
    given = parser.parse_args(arguments)
    if given.steps is not None and not given.steps.exists():
        sys.exit(
            f"--steps {given.steps} is not there. Write it with FittedSteps.save or benchmarks/fitted.py."
        )
    folder = given.folder / given.size if given.size == "smoke" else given.folder
    study = Study(sde=given.sde, name=given.size, images=given.images, folder=folder, minutes=given.minutes)
    try:
        found = study.run(None if given.sde else catalogue(given.steps))
    except OutOfTime:
        print(f"{given.minutes:g} minutes are over; the same command continues")
        return
    shown = found.pop("shown")
    print(report(found))
    if given.size == "smoke":
        return
    stem = f"quality_{'sde' if given.sde else 'ode'}"
    write_table(stem, found["rows"])
    save_figure(curves(found), RESULTS / f"{stem}.png")
    save_figure(sheet(shown), RESULTS / f"{stem}_images.png")
    if not given.sde:
        save_figure(headline(shown), HEADLINE)
    print("written:", write_results(stem, found))


if __name__ == "__main__":
    main()
