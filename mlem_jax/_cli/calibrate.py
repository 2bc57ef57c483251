"""The command `calibrate`."""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .errors import check_place, errors_explained, stop_explained
from .inputs import apply_scales
from .networks import Family, LevelOptions, Negative, Networks, Precision
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
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Images whose trajectories are measured; by default 32, good to about 10%, and 16 for --network.",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=4,
        metavar="N",
        help="Steps of the finest grid of a plan, a multiple of 4; 128 by default, 256 for the SDE, half of that for "
        "--network.",
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
        "for the reverse SDE and for --network.",
    ),
]

# Enough for images: with fewer, held-out pilots reject much of what can be fitted (benchmarks/fitted.py).
_FIT_PILOTS = 128
_PILOTS, _STEPS = 32, {False: 128, True: 256}
# For networks of others, which are not made to be fast on this machine: two in minutes on two CPU cores.
_QUICK_PILOTS, _QUICK_STEPS = 16, {False: 64, True: 128}


def calibrate(
    out: Out,
    checkpoint: Checkpoint = None,
    network: Networks = None,
    family: Family = None,
    dtype: Precision = "float32",
    sde: Sde = False,
    pilots: Pilots = None,
    steps: Steps = None,
    order: Order = None,
    guidance: GuidanceScales = None,
    negative: Negative = None,
    budget: Budget = None,
    fit_pilots: FitPilots = None,
) -> None:
    """Measures a ladder's levels along real trajectories, sizes of the increments, costs, trial runs, and fits steps
    of all costs.

    Prints the report and a plan made from it. After an interruption run the same command again: finished parts, in
    OUT.unfinished, are not measured again. About ten minutes for the shipped networks on two cores, of which the
    fit takes all but one; --fit-pilots 0 leaves it out. Networks of others are named one by one: calibrate --network
    small --network large --out FOLDER. They are measured quickly, on 16 images and without a fit, unless options ask
    for more.
    """
    console = Console()
    with errors_explained(console), stop_explained(console):
        if steps is not None and steps % 4:
            raise ValueError(f"--steps {steps}: a multiple of 4 is expected, such as {-(-steps // 4) * 4}.")
        # Parts of a calibration that was interrupted.
        unfinished = out.with_name(f"{out.name}.unfinished")
        if out.exists() and not unfinished.exists():
            raise FileExistsError(f"{out} exists already; choose another --out or move it away.")
        levels = LevelOptions(checkpoint, network, guidance, family, dtype, negative)
        ladder, scales = levels.read()
        check_place(out.parent, "--out")
        into_file = out.suffix == ".npz"
        if not into_file:
            ladder, scales = apply_scales(ladder, scales), None
        quick = bool(network) and (steps, pilots, fit_pilots) == (None, None, None)
        if fit_pilots is None:
            fit_pilots = 0 if sde or network else _FIT_PILOTS
        settings = {
            "sde": sde,
            "steps": steps or (_QUICK_STEPS if network else _STEPS)[sde],
            "pilots": pilots or (_QUICK_PILOTS if network else _PILOTS),
            "guidance": scales,
            "keep_in": unfinished,
        }
        found = _measure(console, out, ladder, order, fit_pilots, settings)
        shutil.rmtree(unfinished, ignore_errors=True)
    wanted = budget or BUDGETS[sde]
    if into_file:
        (only,) = found.values()
        _show_plan(console, only, budget=wanted)
    else:
        _show_plan(console, ladder.with_calibrations(found), budget=wanted, sde=sde)
    say(console, f"Written: {out}")
    if quick:
        fit = "" if sde else f" --fit-pilots {_FIT_PILOTS}"
        say(
            console,
            f"Measured quickly, on {_QUICK_PILOTS} images and {_QUICK_STEPS[sde]} steps. More exactly"
            + ("" if sde else ", and with steps that are fitted to the networks and need fewer evaluations")
            + f", in many times the time: --pilots {_PILOTS} --steps {_STEPS[sde]}{fit}",
        )
    use = f"{levels.written(sde)} --calibration {out}" + ("" if budget is None else f" --budget {budget:g}")
    say(console, f"Draw with it: python -m mlem_jax sample{use} --out FOLDER")


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
                # That of an earlier call, which was interrupted.
                (out / f"calibration_{kind}.npz").unlink(missing_ok=True)
                ladder.with_calibrations({kind: calibration}).save_calibrations(out)
        finally:
            # Shown even if the disk has become full.
            say(console, f"{calibration}\n")
    return found


def _show_plan(console: Console, calibrated: Any, *, budget: float, **settings: Any) -> None:
    """The plan of a budget from a calibration or a calibrated ladder, or why there is none."""
    try:
        say(console, f"A plan with budget {budget:g}:\n{calibrated.plan(budget=budget, **settings)}\n")
    except ValueError as error:
        say(console, f"No plan: {error}\n")
