"""The options that several commands share."""

import math
from pathlib import Path
from typing import Annotated

import typer

# By default, for the probability flow and the reverse SDE. On the shipped ladder the former's samples are about as good
# as converged ones (benchmarks/quality.py), and the latter's error is that of some 60 Euler steps
# (benchmarks/frontier.py).
BUDGETS = {False: 5.0, True: 12.0}
# What jax.random.key takes with 32-bit integers.
_LARGEST_SEED = 2**32 - 1


def positive(value: float | None) -> float | None:
    """The value of an option, if it is a positive number or not given."""
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"{value:g} is not a positive number.")
    return value


def valid_seed(value: int) -> int:
    """The value of an option, if it can be a seed."""
    if not 0 <= value <= _LARGEST_SEED:
        raise typer.BadParameter(f"{value} is not an integer from 0 to {_LARGEST_SEED}.")
    return value


Checkpoint = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of a trained ladder, or the --out of train; the shipped ladder by default.",
    ),
]
Sde = Annotated[bool, typer.Option("--sde", help="The reverse SDE instead of the probability flow.")]
Budget = Annotated[
    float | None,
    typer.Option(
        callback=positive,
        metavar="X",
        help="What one image may cost, in evaluations of the finest network; by default "
        f"{BUDGETS[False]:g}, and {BUDGETS[True]:g} for the reverse SDE.",
    ),
]
TargetError = Annotated[
    float | None,
    typer.Option(
        "--error",
        callback=positive,
        metavar="X",
        help="Instead of a budget, the error to be reached: the RMS distance of pixels, whose values are from -1 to 1, "
        "to a fine solution with the finest network.",
    ),
]
InSeconds = Annotated[
    bool,
    typer.Option(
        "--in-seconds",
        help="Plan by the seconds that the calibration measured for each network instead of their FLOPs.",
    ),
]
GuidanceScales = Annotated[
    list[float] | None,
    typer.Option(
        "--guidance",
        metavar="SCALE",
        help="Scale of classifier-free guidance, for a ladder with classes; once for all levels, or once for each, "
        "cheapest first.",
    ),
]
Seed = Annotated[
    int, typer.Option(callback=valid_seed, metavar="N", help="Seed of the noise and of the coins.")
]


def one_of(budget: float | None, error: float | None, sde: bool) -> float | None:
    """The budget, by default that of `BUDGETS` where no error is asked for."""
    if budget is not None and error is not None:
        raise typer.BadParameter("Give --budget or --error, not both.")
    return BUDGETS[sde] if budget is None and error is None else budget
