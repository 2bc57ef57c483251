"""Study 6: colour images of 64 x 64 pixels with a finest network of 595 MFLOP: gamma, plans, and all rivals.

    python benchmarks/make_heads.py 42000 runs/heads   # its docstring says how to install its requirements
    python benchmarks/faces.py --quick --heads runs/heads --out runs/faces

trains the finest level of `benchmarks/faces.toml` on 40,000 heads, and then the four smaller levels twice: matched to
the finest level, all in one pass over its outputs, and independently on the images, as in the paper. After an
interruption the same command continues. With `--checkpoint DIR` the finest level is the latest checkpoint in an `--out`
of `python -m mlem_jax train --config benchmarks/faces.toml --levels 5`, which may still be running (it holds out other
images than this study). Levels matched to it are stored under its number of steps.

For both ladders the study then measures the error of each level against its cost in four ways, with gamma and its
standard error for each (`_level_errors.py`); the levels that plans keep; and all methods of `fashion_mnist.py`, tuned
and measured in the same way, for the probability flow (`--sde`: for the reverse SDE). The heads are synthetic, so the
results are synthetic too. Writes `benchmarks/results/faces_quick.json`, `.csv`, `_levels.csv`, `_cost.png`,
`_seconds.png` and two sheets (`faces_full`).

`--full` has more training, images and settings, for an accelerator. `--smoke` has three tiny networks and images of
8 x 8 pixels, takes a few minutes, and writes only to its `--out`. Neither `--quick` nor `--full` has been run yet.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _curves import draw_curves, Row
from _faces import calibrated, colour_sheet, finest_network, load_heads, with_smaller_levels
from _harness import add_sizes, RESULTS, write_results, write_table
from _image_methods import DDIM, Effort, EFFORTS, image_problem, INDEPENDENT, OURS, OURS_SECOND, SINGLE
from _image_report import report
from _image_study import compare_all, Comparison
from _level_errors import gammas, in_words, level_errors, MEASURES
from _methods import Batch, Method
from _runs import run
from gpu import colour_images

from mlem_jax.diffusion import Config, Ladder, Level, read_config, Training
from mlem_jax.plot import save_figure

CONFIG = Path(__file__).with_name("faces.toml")
# Costs on the sheets of images, and the largest cost of a method there, over the wanted one.
SHEET_COSTS, NEAR = (1.6, 2.6, 4.0), 1.15


class Size(NamedTuple):
    """Images for training and held out; training steps of the finest and of the smaller levels (`None`: those of the
    file); pilots and steps of calibrations; images, steps and rounds of timing for the levels' errors; steps of the
    fine grid without and with noise; the settings that are tried; the comparison of methods; and budgets of listed
    plans."""

    training: int
    held_out: int
    steps: int | None
    smaller_steps: int | None
    pilots: int
    calibration_steps: int
    error_images: int
    error_steps: int
    rounds: int
    fine: dict[bool, int]
    effort: Effort
    comparison: Comparison
    budgets: tuple[float, ...]


_QUICK = Effort(
    euler=(2, 3, 4, 6, 8, 12, 16, 24, 32, 64),
    higher=(2, 3, 4, 5, 6, 8, 10, 12, 16, 20),
    stages=(4, 8, 16, 32),
    until=(0.4, 1.0, 2.5, 6.0),
    intervals=(2, 4, 8),
    held_steps=(8, 16, 32),
    budgets=(1.6, 2.6, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0),
    scales=(1.0, 2.0, 4.0, 8.0),
    splits=(4,),
)
SIZES = {
    "smoke": Size(
        64,
        16,
        None,
        None,
        4,
        16,
        2,
        8,
        1,
        {False: 32, True: 32},
        EFFORTS["smoke"],
        Comparison(2, 1, 1, 1, 1, (4, 8)),
        (4.0,),
    ),
    "quick": Size(
        40_000,
        2_000,
        None,
        6_000,
        32,
        64,
        32,
        64,
        3,
        {False: 256, True: 512},
        _QUICK,
        Comparison(16, 3, 1, 3, 2, (16, 32, 64)),
        (1.6, 2.6, 4.0, 8.0, 16.0),
    ),
    "full": Size(
        40_000,
        2_000,
        None,
        None,
        64,
        128,
        64,
        128,
        5,
        {False: 512, True: 1024},
        EFFORTS["full"]._replace(
            higher=(2, 3, *EFFORTS["full"].higher), budgets=(1.6, 2.6, *EFFORTS["full"].budgets)
        ),
        Comparison(32, 3, 2, 4, 5, (16, 32, 64)),
        (1.6, 2.6, 4.0, 8.0, 16.0, 32.0),
    ),
}


def tiny_config() -> Config:
    """Three small networks for images of 8 x 8."""
    levels = tuple(Level(width, folds=(8,), multipliers=(1,), blocks=(1,)) for width in (4, 16, 64))
    training = Training(steps=20, match_steps=20, batch_size=16, warmup_steps=5, sheet_every=20)
    return Config("tiny", (8, 8, 3), levels, training=training)


def configured(size: Size, name: str) -> Config:
    """The configuration of the networks, with the size's numbers of steps."""
    if name == "smoke":
        return tiny_config()
    config = read_config(CONFIG)
    training = config.training
    return dataclasses.replace(
        config,
        training=dataclasses.replace(
            training,
            steps=size.steps or training.steps,
            match_steps=size.smaller_steps or training.match_steps,
        ),
    )


def plans(ladder: Ladder, budgets: tuple[float, ...], *, sde: bool) -> list[Row]:
    """The kept levels and the predicted error of the plan for each budget."""
    rows = []
    for budget in budgets:
        try:
            plan = ladder.plan(budget=budget, sde=sde)
        except ValueError as refusal:
            rows.append({"budget": budget, "refused": str(refusal)})
            continue
        levels = [k + 1 for k in plan.levels]
        rows.append({"budget": budget, "levels": levels, "steps": len(plan.ts) - 1, "predicted": plan.error})
    return rows


def sheet(rows: list[Row], kept: list[Method], batch: Batch, *, sde: bool) -> list[tuple[str, np.ndarray]]:
    """The same heads by the finest level, and by the best setting of each kind of method near each cost."""
    kinds = {
        "finest network alone": (*SINGLE[sde], DDIM),
        "independent coins": INDEPENDENT,
        "multilevel": (OURS, OURS_SECOND),
    }
    found = [("fine solution of the finest network", batch.reference)]
    for cost in SHEET_COSTS:
        for label, names in kinds.items():
            near = [r for r in rows if r["method"] in names and r["cost"] < NEAR * cost]
            if near:
                best = min(near, key=lambda row: row["error"])
                end = run(kept[rows.index(best)], batch).end
                words = f"{label}: {best['method']}, cost {best['cost']:.2f}, error {best['error']:.3f}"
                found.append((words, end))
    return found


def study(
    ladder: Ladder, size: Size, held_out: np.ndarray, *, sde: bool
) -> tuple[dict[str, Any], list[tuple[str, np.ndarray]]]:
    """Levels, plans and methods of one ladder, and the rows of its sheet."""
    flow = image_problem(ladder, False, fine=size.error_steps)
    levels = level_errors(ladder, flow, held_out, images=size.error_images, seed=6000, repeats=size.rounds)
    fits = gammas(levels)
    print(in_words(fits), flush=True)
    problem = image_problem(ladder, sde, fine=size.fine[sde])
    found, kept, batch = compare_all(ladder, problem, size.effort, size.comparison)
    found |= {
        "levels": levels,
        "gammas": [one._asdict() for one in fits],
        "plans": plans(ladder, size.budgets, sde=sde),
    }
    return found, sheet(found["rows"], kept, batch, sde=sde)


def save(
    studies: dict[str, dict[str, Any]], sheets: dict[str, list], stem: str, about: dict[str, Any]
) -> None:
    """JSON, tables and pictures."""
    write_table(stem, [{"ladder": name, **row} for name, found in studies.items() for row in found["rows"]])
    levels = [{"ladder": name, **row} for name, found in studies.items() for row in found["levels"]]
    write_table(f"{stem}_levels", levels)
    panels = [(f"{found['problem']}, levels {name}", found["rows"]) for name, found in studies.items()]
    for unit, label in (("cost", "evaluations of the finest network (FLOPs)"), ("seconds", "seconds")):
        figure = draw_curves(panels, x=unit, x_label=label, y_label="RMS error of a pixel (range -1 to 1)")
        save_figure(figure, RESULTS / f"{stem}_{unit}.png")
    for name, rows in sheets.items():
        save_figure(colour_sheet(rows), RESULTS / f"{stem}_{name}_images.png")
    print("written:", write_results(stem, {**about, "measures": MEASURES, "studies": studies}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_sizes(parser)
    parser.add_argument(
        "--heads", type=Path, default=Path("runs/heads"), help="folder that make_heads.py wrote"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/faces"), help="where networks are trained")
    parser.add_argument("--checkpoint", type=Path, help="folder of a training of the finest level, see above")
    parser.add_argument("--sde", action="store_true", help="the reverse SDE instead of the probability flow")
    arguments = parser.parse_args()
    name, sde, out = arguments.size, arguments.sde, arguments.out
    size = SIZES[name]
    config = configured(size, name)
    try:
        if name == "smoke":
            images = colour_images(size.training + size.held_out, config.shape[0])
            images, held_out = images[: size.training], images[size.training :]
        else:
            images, held_out = load_heads(arguments.heads, size.training, size.held_out)
        finest, steps = finest_network(config, images, held_out, out, checkpoint=arguments.checkpoint)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(f"the finest level has been trained for {steps} steps", flush=True)
    studies, sheets = {}, {}
    for kind in ("matched", "independent"):
        # Independent levels do not depend on the training of the finest level.
        teacher = f"_finest_{steps}" if kind == "matched" else ""
        folder = out / f"{kind}_{config.training.match_steps}{teacher}"
        ladder = with_smaller_levels(config, finest, images, held_out, folder, matched=kind == "matched")
        kinds = ("sde",) if sde else ("ode",) if name == "smoke" else ("ode", "ode_2")
        ladder = calibrated(
            ladder,
            folder / "calibrations",
            kinds=kinds,
            pilots=size.pilots,
            steps=size.calibration_steps,
        )
        studies[kind], sheets[kind] = study(ladder, size, held_out, sde=sde)
        print(report(studies[kind], size.comparison.targets))
    if name != "smoke":
        about = {
            "data": f"{len(images)} synthetic heads",
            "finest_steps": steps,
            "training": dataclasses.asdict(config.training),
        }
        save(studies, sheets, f"faces_{name}{'_sde' * sde}", about)


if __name__ == "__main__":
    main()
