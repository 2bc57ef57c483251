"""The options of `sample` that replace a plan: any number of steps of one method on one network, without a
calibration."""

from typing import Annotated, Any, Literal

import typer

from .._calibration import steps_plan, StepsPlan
from .._solver import AdamsBashforth, EulerMaruyama

Steps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=1,
        metavar="N",
        help="Instead of a plan: N steps of one network alone, without a calibration; one evaluation each.",
    ),
]
StepMethod = Annotated[
    Literal["euler", "ab2"] | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="With --steps: euler, the default, for the probability flow DDIM; or ab2, second order in log s, "
        "DPM-Solver-2M.",
    ),
]
Spacing = Annotated[
    Literal["karras", "log", "time", "cosine"] | None,
    typer.Option(
        metavar="NAME",
        help="With --steps: karras, the default, or in what the steps are equal: log (of s = sigma / alpha), time, "
        "cosine.",
    ),
]
OnLevel = Annotated[
    int | None,
    typer.Option(
        "--level",
        min=1,
        metavar="K",
        help="With --steps: the network, counted from 1, the cheapest; by default the last.",
    ),
]


def check_single_steps(steps: int | None, details: dict[str, Any], planned: dict[str, Any]) -> None:
    """Raises `ValueError` for options that have no effect with, or without, `--steps`."""
    useless = planned if steps is not None else details
    given = [name for name, value in useless.items() if value is not None]
    if given and steps is None:
        raise ValueError(f"{', '.join(given)} needs --steps N; add it, or leave {', '.join(given)} out.")
    if given:
        raise ValueError(f"--steps N replaces the plan; leave out {', '.join(given)}.")


def single_steps_plan(
    ladder: Any, steps: int, method: str | None, spacing: str | None, level: int | None
) -> StepsPlan:
    """The plan that these options describe. Raises `ValueError` for a level that does not exist."""
    count = len(ladder.level_costs())
    if level is not None and level > count:
        raise ValueError(
            f"--level {level}: there are {count} networks; a number from 1 to {count} is expected."
        )
    return steps_plan(
        ladder.process.grid(steps, spacing=spacing or "karras"),
        method=AdamsBashforth("log") if method == "ab2" else EulerMaruyama(),
        level=(level or count) - 1,
    )
