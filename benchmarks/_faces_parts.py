"""The parts of the study of faces: the errors of levels, fitted steps, distributions, and all methods."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _crops import crop_features, train_on_crops, untrained
from _curves import best_grid, draw_curves, Row
from _distribution import kept_model
from _faces import colour_sheet
from _fitted_methods import ALONE_FITTED
from _fitted_report import predictions, report as fitted_report
from _harness import RESULTS, write_results, write_table
from _image_methods import ALL_OURS, DDIM, Effort, image_problem, INDEPENDENT, SINGLE
from _image_report import report as methods_report
from _image_study import compare_all, Comparison
from _level_errors import draw_levels, gammas, in_words, level_errors, MEASURES
from _methods import Batch, Method
from _quality_measures import Eye
from _quality_methods import Effort as QualityEffort
from _quality_report import curves, report as quality_report, sheet as quality_sheet
from _quality_study import Amount, Study
from _runs import run
from fitted import study as fitted_study
from PIL import Image, ImageOps

from mlem_jax.diffusion import Ladder
from mlem_jax.diffusion._data import as_floats, Images
from mlem_jax.plot import save_figure

# Costs on the sheets of images, and the largest cost of a method there, over the wanted one.
SHEET_COSTS, NEAR = (1.6, 2.6, 4.0), 1.15
FINEST = "evaluations of the finest network (FLOPs)"
SECONDS = "seconds"


class Size(NamedTuple):
    """The amount of work.

    - `training`, `held_out`: numbers of images.
    - `matched_steps`, `independent_steps`: training steps of the smaller levels; `None` for those of the file.
    - `pilots`, `steps`: of calibrations with coins.
    - `fit_pilots`, `most`: pilots of fitted steps, and their largest cost.
    - `levels`: images, steps and rounds of timing for the errors of levels.
    - `budgets`: of the plans that are listed.
    - `fitted`: images of a batch, batches, and rounds of timing, for the errors of fitted steps.
    - `quality`, `quality_effort`, `features`: amounts and settings for distributions; training steps and images of the
        network of features.
    - `fine`, `effort`, `comparison`: steps of the fine grid without and with noise, and settings for all methods.
    """

    training: int
    held_out: int
    matched_steps: int | None
    independent_steps: int | None
    pilots: int
    steps: int
    fit_pilots: int
    most: float
    levels: tuple[int, int, int]
    budgets: tuple[float, ...]
    fitted: tuple[int, int, int]
    quality: Amount
    quality_effort: QualityEffort
    features: tuple[int, int]
    fine: dict[bool, int]
    effort: Effort
    comparison: Comparison


class Task(NamedTuple):
    """What a part is given: the ladders by name; images of training and held out; where results are kept while they are
    made; the stem of the files of results, `None` for none; what is written beside them."""

    ladders: dict[str, Ladder]
    size: Size
    images: Images
    held_out: Images
    folder: Path
    stem: str | None
    about: dict[str, Any]
    sde: bool

    def write(self, part: str, studies: dict[str, dict[str, Any]], **more: Any) -> dict[str, dict[str, Any]]:
        """Writes the results of these ladders beside those of others that an earlier run had for the same networks, and
        returns them all."""
        if self.stem is None:
            return studies
        path = RESULTS / f"{self.stem}_{part}.json"
        earlier = json.loads(path.read_text()) if path.exists() else {}
        if {name: earlier.get(name) for name in self.about} == json.loads(json.dumps(self.about)):
            studies = {**earlier["studies"], **studies}
        rows = [{"ladder": name, **row} for name, found in studies.items() for row in found["rows"]]
        write_table(f"{self.stem}_{part}", rows)
        print("written:", write_results(path.stem, {**self.about, **more, "studies": studies}))
        return studies

    def draw(self, part: str, figure: Any) -> None:
        if self.stem is None:
            return
        path = RESULTS / f"{self.stem}_{part.replace(' ', '_')}.png"
        save_figure(figure, path)
        if part.endswith(" images"):
            # Five bits a colour take two thirds of the space and look the same; a palette is duller.
            ImageOps.posterize(Image.open(path).convert("RGB"), 5).save(path, optimize=True)


def plans(ladder: Ladder, budgets: tuple[float, ...]) -> list[Row]:
    """The kept levels and the predicted error of the plan for each budget."""
    rows = []
    for budget in budgets:
        try:
            plan = ladder.plan(budget=budget)
        except ValueError as refusal:
            rows.append({"budget": budget, "refused": str(refusal)})
            continue
        levels = [k + 1 for k in plan.levels]
        rows.append(
            {
                "budget": budget,
                "plan": type(plan).__name__,
                "levels": levels,
                "steps": len(plan.ts) - 1,
                "cost": plan.cost,
                "predicted": plan.error,
            }
        )
    return rows


def fitted_entries(ladder: Ladder) -> list[Row]:
    """What the catalogue of fitted steps says, if the ladder has one: errors of held-out pilots, and how many times
    fewer evaluations that is than the finest level alone needs for the same geometric mean error."""
    calibration = ladder.calibrations.get("ode_2")
    if calibration is None or calibration.fitted is None:
        return []
    return [
        {
            "cost": plan.cost,
            "levels": [k + 1 for k in plan.levels],
            "predicted": plan.error,
            "predicted_geometric_mean": plan.typical_error,
            "times_fewer": plan.speedup_over_single,
        }
        for plan in calibration.fitted.plans()
    ]


def errors_of_levels(task: Task) -> None:
    """Error of each level against its cost, gamma, and the levels that plans keep."""
    images, steps, rounds = task.size.levels
    studies = {}
    for name, ladder in task.ladders.items():
        flow = image_problem(ladder, False, fine=steps)
        rows = level_errors(ladder, flow, task.held_out, images=images, seed=6000, repeats=rounds)
        fits = gammas(rows)
        print(f"{name}:\n{in_words(fits)}", flush=True)
        kept = plans(ladder, task.size.budgets)
        print(*kept, sep="\n", flush=True)
        studies[name] = {"rows": rows, "gammas": [one._asdict() for one in fits], "plans": kept}
        studies[name]["fitted_steps"] = fitted_entries(ladder)
    studies = task.write("levels", studies, measures=MEASURES)
    task.draw("levels", draw_levels({name: found["rows"] for name, found in studies.items()}))


def errors_of_fitted_steps(task: Task) -> None:
    """Study 8 on these ladders."""
    images, batches, rounds = task.size.fitted
    studies = {}
    for name, ladder in task.ladders.items():
        steps = ladder.calibrations["ode_2"].fitted
        assert steps is not None
        print(f"{name}:", flush=True)
        studies[name] = fitted_study(
            ladder, steps, size=images, batches=batches, rounds=rounds, smoke=task.stem is None
        )
        for unit in ("compared", "compared_seconds"):
            print(fitted_report(studies[name][unit]), end="\n\n")
        print(predictions(studies[name]["rows"]), flush=True)
    studies = task.write("fitted", studies)
    panels = [(name, best_grid(found["rows"])) for name, found in studies.items()]
    label = "geometric mean error of an image (range -1 to 1)"
    for unit, words in (("cost", FINEST), ("seconds", SECONDS)):
        task.draw(f"fitted_{unit}", draw_curves(panels, x=unit, x_label=words, y_label=label))


def distributions(task: Task) -> None:
    """Study 9 on these ladders, with features of crops."""
    count, steps = task.size.features
    train = as_floats(task.images[:count])
    shape = train.shape[1:]
    model = kept_model(
        task.folder / f"crops_{count}_{steps}.eqx",
        untrained(shape),
        lambda: train_on_crops(train, steps=steps),
    )
    eye = Eye(partial(crop_features, model), train)
    studies = {}
    for name, ladder in task.ladders.items():
        # Images belong to these networks.
        levels = "".join(ladder.calibrations["ode_2"].measurements.levels_id)
        folder = task.folder / "quality" / hashlib.sha256(levels.encode()).hexdigest()[:12]
        print(f"{name}:", flush=True)
        begun = Study(
            ladder,
            image_problem(ladder, False),
            task.size.quality,
            task.size.quality_effort,
            eye=eye,
            real=as_floats(task.held_out),
            folder=folder,
        )
        found = begun.run(ladder.calibrations["ode_2"].fitted)
        shown = found.pop("shown")
        print(quality_report(found), flush=True)
        task.draw(f"quality {name}", curves(found))
        task.draw(f"quality {name} images", quality_sheet(shown))
        studies[name] = found
    task.write("quality", studies)


def all_methods(task: Task) -> None:
    """All methods of study 2, tuned and measured in the same way."""
    studies = {}
    for name, ladder in task.ladders.items():
        problem = image_problem(ladder, task.sde, fine=task.size.fine[task.sde])
        found, kept, batch = compare_all(ladder, problem, task.size.effort, task.size.comparison)
        print(methods_report(found, task.size.comparison.targets), flush=True)
        rows = _best_near(found["rows"], kept, batch, sde=task.sde)
        task.draw(f"methods {name} images", colour_sheet(rows))
        studies[name] = found
    studies = task.write("methods", studies)
    panels = [(f"{found['problem']}, {name}", found["rows"]) for name, found in studies.items()]
    label = "RMS error of a pixel (range -1 to 1)"
    for unit, words in (("cost", FINEST), ("seconds", SECONDS)):
        task.draw(f"methods_{unit}", draw_curves(panels, x=unit, x_label=words, y_label=label))


def _best_near(
    rows: list[Row], kept: list[Method], batch: Batch, *, sde: bool
) -> list[tuple[str, np.ndarray]]:
    """The same heads by the finest level, and by the best setting of each kind of method near each cost."""
    kinds = {
        "finest network alone": (*SINGLE[sde], DDIM, ALONE_FITTED),
        "independent coins": INDEPENDENT,
        "multilevel": ALL_OURS,
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


PARTS: dict[str, Callable[[Task], None]] = {
    "levels": errors_of_levels,
    "fitted": errors_of_fitted_steps,
    "quality": distributions,
    "methods": all_methods,
}
