"""Study 2: images by the shipped ladder. Is ML-EM cheaper than the alternatives?

Run `python benchmarks/fashion_mnist.py --quick` (about an hour on two cores) or `--full` (hours), with `--ode` or
`--sde` for one of the two; `--smoke` is for the tests. Writes `benchmarks/results/fashion_mnist_quick.json`, two
`.csv` files, pictures of the curves, and a sheet of images for each (`fashion_mnist_full`). The distribution metrics
need the Debian package dataset-fashion-mnist.

All methods of `_image_methods.py` are tuned on one batch of images: of all settings (steps, grid, time of switching,
interval, budget) those with a smaller error than all cheaper ones are kept. They run again on fresh batches, all from
the same noise and on the same Brownian path, and are compared with a fine solution of the finest network. Reported are
the costs, in evaluations and in wall-clock seconds, at which a method reaches the error of Euler (DDIM) with 50, 100 or
250 steps on the default grid on the same images, with median and range over batches. Seconds are without compilation;
the runs of all methods are interleaved.

The second table compares distributions: distances of many images of each method to held-out real images, beside the
distances of real training images.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax.random as jr
import numpy as np
from _curves import draw_curves, Row
from _distribution import accuracy, Classifier, distances, train_classifier
from _harness import add_sizes, RESULTS, write_results, write_table
from _image_methods import (
    ALL_OURS,
    DDIM,
    EFFORTS,
    image_problem,
    INDEPENDENT,
    SINGLE,
)
from _image_report import bars, report
from _image_study import compare_all, Comparison
from _methods import draw, Method, Shared
from _runs import run

from mlem_jax.diffusion import Ladder, load_images, load_labels, load_ladder
from mlem_jax.plot import samples, save_figure


class Size(NamedTuple):
    """The comparison of methods; images for the distances of distributions; training steps of the classifier."""

    comparison: Comparison
    images: int
    classifier_steps: int


SIZES = {
    "smoke": Size(Comparison(2, 1, 1, 1, 1, (4, 8)), 0, 0),
    "quick": Size(Comparison(16, 3, 2, 3, 3, (50, 100, 250)), 512, 1500),
    "full": Size(Comparison(32, 6, 4, 8, 5, (50, 100, 250)), 2048, 4000),
}


class Real(NamedTuple):
    """Real images and labels: those that train the classifier, and held-out ones with which images are compared."""

    train: tuple[np.ndarray, np.ndarray]
    held_out: tuple[np.ndarray, np.ndarray]


def load_real() -> Real:
    train, held_out = ((load_images(train=train), load_labels(train=train)) for train in (True, False))
    return Real(train, held_out)


def chosen(rows: list[Row], methods: list[Method], sde: bool) -> dict[str, Method]:
    """The methods whose distributions are compared, each with the setting whose cost is nearest to a given one."""
    singles = [row for row in rows if row["method"] in SINGLE[sde]]
    finest = 0.05
    wanted: dict[str, tuple[list[Row], float]] = {}
    for cost in (10.0, 20.0, 50.0, 100.0):
        wanted[f"Euler (DDIM), {cost:g}"] = ([r for r in rows if r["method"] == DDIM], cost)
    for cost in (6.0, 12.0, 24.0):
        near = [r for r in singles if abs(np.log(r["cost"] / cost)) < 0.25] or singles
        best = min(near, key=lambda row: row["error"])
        wanted[f"best single-model sampler, {cost:g}"] = ([best], cost)
        ours = [r for r in rows if r["method"] in ALL_OURS]
        near = [r for r in ours if abs(np.log(r["cost"] / cost)) < 0.25] or ours
        wanted[f"ML-EM, midpoint, {cost:g}"] = (
            [min(near, key=lambda row: row["error"])] if near else [],
            cost,
        )
        independent = [r for r in rows if r["method"] in INDEPENDENT]
        wanted[f"ML-EM, independent coins, {cost:g}"] = (independent, cost)
    found: dict[str, Method] = {}
    for label, (choice, cost) in wanted.items():
        if choice:
            row = min(choice, key=lambda row: abs(np.log(max(row["cost"], finest) / cost)))
            found[label] = methods[rows.index(row)]
    return found


def distribution_table(
    problem: Shared, picked: dict[str, Method], data: Real, size: Size, seed: int
) -> tuple[list[Row], float]:
    """The distances of many images of each method to held-out real images, and the classifier's accuracy."""
    model = train_classifier(Classifier(), *data.train, steps=size.classifier_steps)
    correct = accuracy(model, *data.held_out)
    real, target = data.train[0], data.held_out[0][: size.images]
    rows: list[Row] = [
        {"method": "real training images", "cost": None, **distances(model, real[: size.images], target)}
    ]
    for label, method in picked.items():
        ends, costs = [], []
        for start in range(0, size.images, size.comparison.samples):
            key = jr.fold_in(jr.key(seed), start)
            batch = draw(problem, key, size.comparison.samples, lambda b: np.zeros(b.y0.shape))
            found = run(method, batch, start)
            ends.append(found.end)
            costs.append(found.cost)
        images = np.clip(np.concatenate(ends)[: size.images], -1, 1)
        rows.append(
            {
                "method": label,
                "setting": method.setting,
                "cost": float(np.mean(costs)),
                **distances(model, images, target),
            }
        )
        print(rows[-1], flush=True)
    return rows, correct


def study(ladder: Ladder, *, sde: bool, name: str) -> dict[str, Any]:
    """All of the study for the probability flow or the reverse SDE; pictures are the caller's."""
    size, problem = SIZES[name], image_problem(ladder, sde)
    # First, so that missing data is noticed before the long work.
    data = load_real() if size.images else None
    found, kept, batch = compare_all(ladder, problem, EFFORTS[name], size.comparison)
    picked = chosen(found["rows"], kept, sde)
    sheet = [("reference", batch.reference[..., 0])]
    sheet += [(label, run(method, batch).end[..., 0]) for label, method in picked.items()]
    if data is not None:
        table, correct = distribution_table(problem, picked, data, size, 9000)
        found |= {"distribution": table, "classifier_accuracy": correct}
    return {"found": found, "sheet": sheet}


def save(results: dict[bool, dict[str, Any]], name: str, folder: Path = RESULTS) -> None:
    """JSON, CSV and pictures."""
    studies = [result["found"] for result in results.values()]
    stem = f"fashion_mnist_{name}" + ("" if len(results) == 2 else f"_{'sde' if True in results else 'ode'}")
    write_table(stem, [row for found in studies for row in found["rows"]])
    write_table(f"{stem}_reach", [{"problem": f["problem"], **row} for f in studies for row in f["reach"]])
    for unit, label in (("cost", "evaluations of the finest network (FLOPs)"), ("seconds", "seconds")):
        panels = [(found["problem"], found["rows"]) for found in studies]
        figure = draw_curves(panels, x=unit, x_label=label, y_label="RMS error of a pixel (range -1 to 1)")
        save_figure(figure, folder / f"{stem}_{unit}.png")
    for sde, result in results.items():
        save_figure(samples(result["sheet"]), folder / f"{stem}_images_{'sde' if sde else 'ode'}.png")
    print("written:", write_results(stem, {"studies": studies}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_sizes(parser)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--ode", dest="kinds", action="store_const", const=(False,))
    kinds.add_argument("--sde", dest="kinds", action="store_const", const=(True,))
    arguments = parser.parse_args()
    ladder, results = load_ladder(), {}
    for sde in arguments.kinds or (False, True):
        results[sde] = study(ladder, sde=sde, name=arguments.size)
        print(report(results[sde]["found"], SIZES[arguments.size].comparison.targets))
        if arguments.size != "smoke":
            print("\n".join(bars(results[sde]["found"])))
    if arguments.size != "smoke":
        save(results, arguments.size)


if __name__ == "__main__":
    main()
