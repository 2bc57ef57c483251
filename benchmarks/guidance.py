"""Study 3: class-conditional images with classifier-free guidance. Is ML-EM cheaper there, too?

Run `python benchmarks/guidance.py --quick` (or `--full`; `--smoke` for the tests). It trains the three networks of
`benchmarks/guidance.toml` on Fashion-MNIST (Debian package dataset-fashion-mnist) in `--out`, where the same command
continues after an interruption and finds them when it is run again, or takes `--ladder DIR`; calibrates them with
guidance 3 on 64 pilots with labels, for steps of either order; and runs all methods on fresh noise, with the same
labels for all. Writes `benchmarks/results/guidance_quick.json`, `.csv`, `_cost.png`, `_seconds.png` and
`_images.png` (`guidance_full`).

A guided evaluation is two of the network, one with the label and one without, at every level. Errors are distances to
a fine solution of the guided finest level from the same noise. Single-model samplers take the better of two grids at
every step count, chosen after the fact; plans are made beforehand. Mean and spread over three batches of 20 images,
two of each class, and for the paper's independent coins over 3 coin seeds too.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from _curves import draw_curves
from _harness import add_sizes, RESULTS, write_results, write_table
from _ladder_study import (
    best_grid,
    compare,
    Effort,
    EULER,
    ladder_problem,
    MULTISTEP,
    nearest,
    report,
    tiny_ladder,
)
from _runs import run
from matplotlib.figure import Figure

import mlem_jax as ml
from mlem_jax.diffusion import (
    calibrate_ladder,
    Ladder,
    load_images,
    load_labels,
    load_ladder,
    train_ladder,
)
from mlem_jax.diffusion._ladder import METHODS
from mlem_jax.plot import samples, save_figure

CONFIG = Path(__file__).with_name("guidance.toml")
SCALE = 3.0
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
EFFORTS = {
    "smoke": Effort(32, (4, 8), (4,), (2.0, 6.0), {EULER: (4,)}, 10, 1, 1, 1),
    "quick": Effort(
        256,
        (8, 16, 32, 64, 128),
        (6, 8, 10, 12, 16, 20, 25),
        (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0),
        {EULER: (16, 32, 64), MULTISTEP: (8, 12, 20)},
        20,
        3,
        3,
        2,
    ),
    "full": Effort(
        512,
        (8, 12, 16, 24, 32, 48, 64, 96, 128, 256),
        (5, 6, 7, 8, 10, 12, 14, 16, 20, 25, 32, 40),
        (2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 32.0, 48.0),
        {EULER: (16, 32, 64, 128), MULTISTEP: (6, 8, 12, 16, 20)},
        60,
        8,
        8,
        5,
    ),
}
PILOTS, PICTURE_COST = 64, 8.0


def ladder_at(out: Path, given: Path | None) -> Ladder:
    """The given ladder, or the one in `out`, which is trained there if necessary."""
    if given is not None:
        return load_ladder(given)
    if (out / "ladder").is_dir() and (out / "config.toml").read_text() == CONFIG.read_text():
        return load_ladder(out / "ladder")
    return train_ladder(
        CONFIG,
        out,
        load_images(),
        load_images(train=False),
        labels=load_labels(),
        held_out_labels=load_labels(train=False),
    )


def calibration_at(out: Path, ladder: Ladder, method: ml.AbstractMethod) -> ml.Calibration:
    """The calibration with guidance from a folder; it is measured and stored there if it is missing or belongs to
    another ladder."""
    path = out / f"calibration_guidance_{SCALE:g}_order_{method.order}.npz"
    if path.is_file():
        kept = ml.Calibration.load(path)
        try:
            kept.require(ladder.term(guidance=SCALE).levels, jnp.zeros(ladder.config.shape))
            return kept
        except ValueError as error:
            print(f"{path} is measured again: {error}")
    made = calibrate_ladder(ladder, pilots=PILOTS, guidance=SCALE, method=method)
    made.save(path)
    return made


def study(
    ladder: Ladder, calibrations: Sequence[ml.Calibration], effort: Effort
) -> tuple[dict[str, Any], Figure]:
    """The comparison, and the same images by all methods at about the same cost."""
    labels = np.arange(effort.images, dtype=np.int32) % 10
    problem = ladder_problem(ladder, effort.fine, guidance=SCALE, labels=labels)
    found, methods, batches = compare(problem, ladder, calibrations, effort, seed=8200)
    sheet = [("fine solution of the finest level", batches[0].reference[..., 0])]
    for name, index in nearest(found["rows"], PICTURE_COST).items():
        row, end = found["rows"][index], run(methods[index], batches[0]).end
        sheet.append((f"{name}, cost {row['cost']:.1f}, error {row['error']:.3f}", end[..., 0]))
    return {"guidance": SCALE, **found}, sheet_of(sheet)


def sheet_of(rows: list[tuple[str, np.ndarray]]) -> Figure:
    """One row for each method, one column for each class."""
    figure, side = samples(rows, columns=10), rows[0][1].shape[2]
    last = figure.axes[-1]
    last.set_xticks(side * (np.arange(10) + 0.5), CLASSES, fontsize=7)
    last.tick_params(length=0)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--ladder", type=Path, help="folder of a trained ladder with ten classes")
    parser.add_argument("--out", type=Path, default=Path("runs/guidance"), help="where the ladder is trained")
    arguments = parser.parse_args()
    if arguments.size == "smoke":
        ladder = tiny_ladder(3, classes=10)
        calibration = calibrate_ladder(ladder, pilots=4, steps=16, guidance=SCALE, progress=False)
        print(report(study(ladder, [calibration], EFFORTS["smoke"])[0]["reach"]))
        return
    ladder = ladder_at(arguments.out, arguments.ladder)
    if ladder.config.classes != 10:
        parser.error(
            f"{arguments.ladder} has classes = {ladder.config.classes}; a ladder with 10 is expected."
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    calibrations = [calibration_at(arguments.out, ladder, method) for method in METHODS]
    print(*calibrations, sep="\n", flush=True)
    found, picture = study(ladder, calibrations, EFFORTS[arguments.size])
    print(report(found["reach"]))
    rows, stem = best_grid(found["rows"]), f"guidance_{arguments.size}"
    for unit, label in (("cost", "guided evaluations of the finest network (FLOPs)"), ("seconds", "seconds")):
        curves = draw_curves(
            [(found["problem"], rows)], x=unit, x_label=label, y_label="RMS error of a pixel"
        )
        save_figure(curves, RESULTS / f"{stem}_{unit}.png")
    save_figure(picture, RESULTS / f"{stem}_images.png")
    write_table(stem, found["rows"])
    results = {"card": ladder.card, "calibrations": list(map(str, calibrations)), **found}
    print("written:", write_results(stem, results))


if __name__ == "__main__":
    main()
