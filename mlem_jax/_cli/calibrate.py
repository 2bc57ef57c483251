"""The command `calibrate`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .errors import check_place, errors_explained
from .inputs import apply_scales, common_options
from .networks import Family, Negative, network_options, Networks, Precision, read_levels
from .options import Budget, BUDGETS, Checkpoint, GuidanceScales, Sde
from .screen import say

Out = Annotated[
    Path,
    typer.Option(
        metavar="PATH",
        help="Folder for the calibrations of all methods, or a file, .npz, for that of one; sample --calibration reads "
        "both.",
    ),
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
    int | None,
    typer.Option(
        min=1,
        max=2,
        metavar="N",
        help="Of the steps of plans: 1 for Euler's method underneath (MLEM), 2 for Adams and Bashforth's (MLAB2). "
        "By default both in a folder, 1 in a file.",
    ),
]
FitPilots = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Images on which steps of all costs are fitted; by default 128 for the probability flow, and 0, none, "
        "for the reverse SDE.",
    ),
]

# Enough for images: with fewer, held-out pilots reject much of what can be fitted (benchmarks/fitted.py).
_FIT_PILOTS = 128


def calibrate(
    out: Out,
    checkpoint: Checkpoint = None,
    network: Networks = None,
    family: Family = None,
    dtype: Precision = "float32",
    sde: Sde = False,
    pilots: Pilots = 32,
    steps: Steps = None,
    order: Order = None,
    guidance: GuidanceScales = None,
    negative: Negative = None,
    budget: Budget = None,
    fit_pilots: FitPilots = None,
) -> None:
    """Measures a ladder's levels along real trajectories, sizes of the increments, costs, trial runs, and fits steps
    of all costs.

    Prints the report and a plan made from it. About ten minutes for the shipped networks on two cores, of which the
    fit takes all but one; --fit-pilots 0 leaves it out. Networks of others are named one by one: calibrate --network
    small --network large --out FOLDER
    """
    console = Console()
    with errors_explained(console):
        if steps is not None and steps % 4:
            raise ValueError(f"--steps {steps}: a multiple of 4 is expected, such as {-(-steps // 4) * 4}.")
        if out.exists():
            raise FileExistsError(f"{out} exists already; choose another --out or move it away.")
        ladder, scales = read_levels(checkpoint, network, guidance, family, dtype, negative)
        check_place(out.parent, "--out")
        into_file = out.suffix == ".npz"
        if not into_file:
            ladder, scales = apply_scales(ladder, scales), None
        if fit_pilots is None:
            fit_pilots = 0 if sde else _FIT_PILOTS
        settings = {"sde": sde, "steps": steps, "pilots": pilots, "guidance": scales}
        found = _measure(console, out, ladder, order, fit_pilots, settings)
    wanted = budget or BUDGETS[sde]
    try:
        if into_file:
            (only,) = found.values()
            plan = only.plan(budget=wanted)
        else:
            plan = ladder.with_calibrations(found).plan(budget=wanted, sde=sde)
        say(console, f"A plan with budget {wanted:g}:\n{plan}\n")
    except ValueError as error:
        say(console, f"No plan: {error}\n")
    options = network_options(network, family, dtype) + common_options(checkpoint, sde, guidance, negative)
    budget_given = "" if budget is None else f" --budget {budget:g}"
    say(console, f"Written: {out}")
    say(
        console,
        f"Draw with it: python -m mlem_jax sample{options} --calibration {out}{budget_given} --out FOLDER",
    )


def _measure(
    console: Console, out: Path, ladder: Any, order: int | None, fit_pilots: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """The calibrations for all methods, or for that of `order`, by name; each is written and shown once it is there."""
    from .. import diffusion
    from ..diffusion._ladder import calibration_name, METHODS

    into_file = out.suffix == ".npz"
    methods = METHODS[order - 1 : order] if order else METHODS[:1] if into_file else METHODS
    found = {}
    for method in methods:
        # Fitted steps do not depend on the method: fitting them once is enough.
        fitted = fit_pilots if method == methods[-1] else 0
        # What the methods have in common is measured once.
        shared = {"like": next(iter(found.values()))} if found else {}
        calibration = diffusion.calibrate_ladder(
            ladder, method=method, fit_pilots=fitted, **settings, **shared
        )
        kind = calibration_name(settings["sde"], method)
        found[kind] = calibration
        try:
            if into_file:
                calibration.save(out)
            else:
                ladder.with_calibrations({kind: calibration}).save_calibrations(out)
        finally:
            # Shown even if the disk has become full.
            say(console, f"{calibration}\n")
    return found
