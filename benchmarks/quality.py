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

Rivals are fitted too (`_quality_fits.py`): the finest network alone with its grid searched for the path and, apart
from that, with the better of this and Karras' grid for the distribution; each smaller network alone; one network
early and another late.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _distribution import Classifier, features, kept_model, train_classifier
from _harness import add_sizes, RESULTS, write_results, write_table
from _image_methods import image_problem
from _quality_images import OutOfTime
from _quality_measures import Eye
from _quality_methods import EFFORTS
from _quality_report import curves, headline, report, sheet
from _quality_study import Amount, Study

import mlem_jax as ml
from mlem_jax.diffusion import load_images, load_labels, load_ladder
from mlem_jax.plot import save_figure

# The picture of the project's README.
HEADLINE = Path(__file__).parents[1] / "docs" / "samples.png"


class Size(NamedTuple):
    """Images of a method and of the choice for the distribution; steps of the converged sampler, for the probability
    flow and for the reverse SDE; training steps of the classifier; pilots of the fits."""

    images: int
    searched: int
    steps: dict[bool, int]
    classifier_steps: int
    pilots: int


SIZES = {
    "smoke": Size(64, 64, {False: 4, True: 4}, 20, 8),
    "quick": Size(2048, 128, {False: 32, True: 50}, 1500, 128),
    "full": Size(10_000, 1024, {False: 32, True: 50}, 3000, 128),
}


def study(*, sde: bool, name: str, images: int | None = None, folder: Path, minutes: float = np.inf) -> Study:
    """That of the shipped ladder."""
    size, ladder = SIZES[name], load_ladder()
    count = images or size.images
    train, labels = load_images(), load_labels()
    model = kept_model(
        folder / "classifier.eqx",
        Classifier(),
        lambda: train_classifier(Classifier(), train, labels, steps=size.classifier_steps),
    )
    return Study(
        ladder,
        image_problem(ladder, sde, fine=256 if sde else None),
        Amount(count, size.searched, size.steps[sde], size.pilots),
        EFFORTS[name],
        eye=Eye(partial(features, model), train),
        real=load_images(train=False)[:count],
        folder=folder,
        minutes=minutes,
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
    begun = study(sde=given.sde, name=given.size, images=given.images, folder=folder, minutes=given.minutes)
    try:
        found = begun.run(None if given.sde else catalogue(given.steps))
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
