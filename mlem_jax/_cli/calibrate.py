"""The command `calibrate`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .errors import check_place, errors_explained
from .inputs import common_options, read_ladder, read_scales
from .options import BUDGET, Budget, Checkpoint, GuidanceScales, Sde
from .screen import say

Out = Annotated[
    Path,
    typer.Option(metavar="FILE", help="File for the calibration, .npz; sample --calibration reads it."),
]
Pilots = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", help="Images whose trajectories are measured; with 32, good to about 10%."
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=4,
        metavar="N",
        help="Steps of the finest grid of a plan, a multiple of 4; 128 by default, 256 for the SDE.",
    ),
]
Order = Annotated[
    int,
    typer.Option(
        min=1,
        max=2,
        metavar="N",
        help="Of the steps of plans: 1 for Euler's method underneath (MLEM), 2 for Adams and Bashforth's (MLAB2).",
    ),
]

# Enough for images: with fewer, held-out pilots reject much of what can be fitted (benchmarks/fitted.py).
_FIT_PILOTS = 128


def calibrate(
    out: Out,
    checkpoint: Checkpoint = None,
    sde: Sde = False,
    pilots: Pilots = 32,
    steps: Steps = None,
    order: Order = 1,
    guidance: GuidanceScales = None,
    budget: Budget = None,
    fit_pilots: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Images on which steps of all costs are fitted; by default 128 for the probability flow, and 0, none, "
            "for the reverse SDE.",
        ),
    ] = None,
) -> None:
    """Measures a ladder's levels along real trajectories, sizes of the increments, costs, trial runs, and fits steps
    of all costs.

    Prints the report and a plan made from it. About ten minutes for the shipped networks on two cores, of which the
    fit takes all but one; --fit-pilots 0 leaves it out.
    """
    console = Console()
    with errors_explained(console):
        if steps is not None and steps % 4:
            raise ValueError(f"--steps {steps}: a multiple of 4 is expected, such as {-(-steps // 4) * 4}.")
        if out.exists():
            raise FileExistsError(f"{out} exists already; choose another --out or move it away.")
        check_place(out.parent, "--out")
        ladder = read_ladder(checkpoint)
        scales = read_scales(ladder, guidance)
        from .. import diffusion
        from ..diffusion._ladder import METHODS

        if fit_pilots is None:
            fit_pilots = 0 if sde else _FIT_PILOTS
        calibration = diffusion.calibrate_ladder(
            ladder,
            sde=sde,
            steps=steps,
            pilots=pilots,
            method=METHODS[order - 1],
            guidance=scales,
            fit_pilots=fit_pilots,
        )
    with errors_explained(console):
        try:
            calibration.save(out)
        finally:
            # What was measured is shown even where the disk has become full.
            say(console, f"{calibration}\n")
    budget_given = "" if budget is None else f" --budget {budget:g}"
    try:
        plan = calibration.plan(budget=budget or BUDGET)
        say(console, f"A plan with budget {budget or BUDGET:g}:\n{plan}\n")
    except ValueError as error:
        say(console, f"No plan: {error}\n")
    options = common_options(checkpoint, sde, guidance)
    say(console, f"Written: {out}")
    say(
        console,
        f"Draw with it: python -m mlem_jax sample{options} --calibration {out}{budget_given} --out FOLDER",
    )
