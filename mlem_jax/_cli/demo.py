"""The command `demo`, the main job."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .._io import write_text_safely
from .errors import check_place, errors_explained
from .options import Budget, InSeconds, one_of, Sde, Seed, TargetError
from .screen import say


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for samples.png and coins.png.")] = Path(
        "mlem_jax_out"
    ),
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write all numbers to this JSON file.")
    ] = None,
    seed: Seed = 0,
    samples: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many images, drawn as one batch.")
    ] = 16,
    budget: Budget = None,
    error: TargetError = None,
    sde: Sde = False,
    in_seconds: InSeconds = False,
) -> None:
    """Draws images with the four shipped networks, beside the largest network alone by Euler, DPM-Solver++(2M) and
    fitted steps, from the same noise, and compares error, evaluations and seconds. About a minute on two cores.
    """
    console = Console()
    budget = one_of(budget, error, sde)
    with errors_explained(console):
        if json_file is not None and json_file.is_dir():
            raise ValueError(f"--json {json_file} is a folder; name a file.")
        check_place(out, "--out")
        if json_file is not None:
            check_place(json_file.parent, "--json")
        from .. import diffusion
        from .comparison import compare
        from .comparison_report import comparison_table, draw_comparison

        ladder = diffusion.load_ladder()
        kind = "reverse SDE (one Brownian path)" if sde else "probability flow"
        console.print(
            f"{samples} images of {ladder.config.name}, {kind}, seed {seed}, "
            + (f"budget {budget:g}" if error is None else f"error {error:g}")
        )
        with console.status("loading") as status:
            comparison = compare(
                ladder,
                seed=seed,
                samples=samples,
                budget=budget,
                error=error,
                sde=sde,
                in_seconds=in_seconds,
                report=lambda method: status.update(f"{method} (compiling, then drawing)"),
            )
    plan = f"\nThe plan, from the shipped calibration:\n{comparison.plan}\n"
    say(console, plan)
    console.print(comparison_table(comparison))
    _explain(console, comparison)
    with errors_explained(console):
        draw_comparison(comparison, out)
        say(console, f"Pictures: {out / 'samples.png'}, {out / 'coins.png'}")
        if json_file is not None:
            write_text_safely(json_file, json.dumps(_numbers(comparison), indent=2) + "\n")
            say(console, f"Numbers: {json_file}")


def _explain(console: Console, comparison: Any) -> None:
    console.print(
        "RMS: over all pixels (range -1 to 1) of the distance to a fine solution of the finest network; median, "
        "geometric: median and geometric mean of the images' own errors, which a few images do not decide; evals: cost "
        "in evaluations of the finest network (FLOPs); s: seconds without compilation; ±: standard deviation over coin "
        "seeds. All rows but Euler's and DPM-Solver++'s, which take whole steps, were planned for the same cost.",
        highlight=False,
    )
    ours = comparison.ours
    for rival, found in comparison.speedup.items():
        console.print(
            f"For the geometric mean error of '{ours.method}', {ours.typical_error:.3f}, {rival} needs "
            f"{found['finest_evaluations']:.2f} times the evaluations and {found['seconds']:.2f} times the seconds."
        )


def _numbers(comparison: Any) -> dict[str, Any]:
    return {
        "ours": comparison.ours.method,
        "rows": [vars(row) for row in comparison.rows],
        "speedup": comparison.speedup,
    }
