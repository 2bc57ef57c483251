"""The commands `sample` and `calibrate`."""

import tempfile
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import typer
from rich.console import Console

from .._calibration.calibration import Calibration
from .._calibration.plan import Plan
from ..diffusion import calibrate_ladder, Ladder, load_ladder, sample as draw_samples, save_grid
from ..diffusion._ladder.ladder import METHODS

_BUDGET = 12.0
_SHOWN = 100

Checkpoint = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of a trained ladder, or the --out of train; the shipped ladder by default.",
    ),
]
Sde = Annotated[bool, typer.Option("--sde", help="The reverse SDE instead of the probability flow.")]
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
Budget = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="X",
        help="What one image may cost, in evaluations of the finest network; 12 by default.",
    ),
]


def sample(
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Folder for samples.npz and samples.png; the same again continues a stopped run.",
        ),
    ],
    checkpoint: Checkpoint = None,
    n: Annotated[int, typer.Option("--n", min=1, metavar="N", help="How many images.")] = 64,
    budget: Budget = None,
    target: Annotated[
        float | None,
        typer.Option(
            "--error", min=0.0, metavar="X", help="Instead of a budget, the sampling error to be reached."
        ),
    ] = None,
    in_seconds: InSeconds = False,
    sde: Sde = False,
    label: Annotated[
        int | None,
        typer.Option(
            "--label",
            metavar="N",
            help="Label of all images, for a ladder with classes (their number: no label); by default all in turn.",
        ),
    ] = None,
    guidance: GuidanceScales = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the noise and of the coins.")] = 0,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Images that a device holds at a time; bounds the memory.")
    ] = 64,
    calibration_file: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="File made by calibrate; by default what the ladder was saved with.",
        ),
    ] = None,
) -> None:
    """Draws images with a trained ladder of networks, on all devices.

    Image number i depends on the seed and the plan, not on how many are drawn or in which batches. Run the same
    command again after an interruption: it continues with the batches that are missing.
    """
    console = Console()
    if budget is not None and target is not None:
        raise typer.BadParameter("Give --budget or --error, not both.")
    try:
        ladder = _load(checkpoint)
        scales = _scales(guidance)
        labels = _labels(ladder, label, n)
        _check_calibrated(ladder, checkpoint, calibration_file, sde, scales)
        plan = _plan(ladder, calibration_file, sde, scales, budget, target, in_seconds)
        console.print(f"{plan}\n", highlight=False)
        found = draw_samples(
            ladder,
            n=n,
            plan=plan,
            key=jr.key(seed),
            stochasticity=float(sde),
            labels=labels,
            guidance=scales,
            batch_size=batch_size,
            out=out,
        )
        picture = out / "samples.png"
        save_grid(picture, found.images[:_SHOWN])
    except (FileNotFoundError, FileExistsError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    except (FloatingPointError, OSError) as error:
        console.print(f"[red]Stopped:[/red] {error}", highlight=False)
        raise typer.Exit(1) from error
    shown = "" if n <= _SHOWN else f" (the first {_SHOWN})"
    console.print(f"{n} images: {out / 'samples.npz'}, {picture}{shown}")


def calibrate(
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="File for the calibration, .npz; sample --calibration reads it."),
    ],
    checkpoint: Checkpoint = None,
    sde: Sde = False,
    pilots: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Images whose trajectories are measured; with 32, good to about 10%."
        ),
    ] = 32,
    steps: Annotated[
        int | None,
        typer.Option(
            min=4, metavar="N", help="Steps of the finest grid of a plan; 128 by default, 256 for the SDE."
        ),
    ] = None,
    order: Annotated[
        int,
        typer.Option(
            min=1,
            max=2,
            metavar="N",
            help="Of the steps of plans: 1 for Euler's method underneath (MLEM), 2 for MLAB2.",
        ),
    ] = 1,
    guidance: GuidanceScales = None,
    budget: Budget = None,
) -> None:
    """Measures a ladder's levels along real trajectories: sizes of the increments, costs, trial runs.

    Prints the report and a plan made from it. About a minute for the shipped networks on two cores.
    """
    console = Console()
    try:
        _check_file(out)
        ladder = _load(checkpoint)
        scales = _scales(guidance)
        calibration = calibrate_ladder(
            ladder, sde=sde, steps=steps, pilots=pilots, method=METHODS[order - 1], guidance=scales
        )
    except (FileNotFoundError, FileExistsError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    try:
        # Before anything else can go wrong.
        calibration.save(out)
    except OSError as error:
        console.print(f"{calibration}\n\n[red]Stopped:[/red] {error}", highlight=False)
        raise typer.Exit(1) from error
    console.print(f"{calibration}\n", highlight=False)
    try:
        plan = calibration.plan(budget=_BUDGET if budget is None else budget)
        console.print(f"A plan with budget {budget or _BUDGET:g}:\n{plan}\n", highlight=False)
    except ValueError as error:
        console.print(f"No plan: {error}\n", highlight=False)
    kind = (" --sde" if sde else "") + "".join(f" --guidance {scale}" for scale in guidance or ())
    kind += "" if budget is None else f" --budget {budget:g}"
    given = "" if checkpoint is None else f" --checkpoint {checkpoint}"
    console.print(f"Written: {out}", highlight=False, soft_wrap=True)
    console.print(
        f"Draw with it: python -m mlem_jax sample{given} --calibration {out}{kind} --out FOLDER",
        highlight=False,
        soft_wrap=True,
    )


def _load(checkpoint: Path | None) -> Ladder:
    if checkpoint is None:
        return load_ladder()
    # What train was given as --out holds the ladder one folder deeper.
    inside = checkpoint / "ladder"
    return load_ladder(inside if inside.is_dir() else checkpoint)


def _scales(guidance: list[float] | None) -> float | list[float] | None:
    if not guidance:
        return None
    return guidance[0] if len(guidance) == 1 else guidance


def _labels(ladder: Ladder, label: int | None, n: int) -> np.ndarray | None:
    classes = ladder.config.classes
    if classes is None:
        if label is not None:
            raise ValueError(
                "--label is for a ladder with classes, and this one was trained without. Leave it out."
            )
        return None
    return np.arange(n, dtype=np.int32) % classes if label is None else np.full(n, label, np.int32)


def _check_calibrated(
    ladder: Ladder,
    checkpoint: Path | None,
    file: Path | None,
    sde: bool,
    guidance: float | list[float] | None,
) -> None:
    if file is not None:
        return
    if guidance is not None:
        raise ValueError(
            "The calibration that the ladder was saved with is without guidance. Measure one with 'python -m mlem_jax "
            "calibrate --out FILE' and the same --guidance, and add --calibration FILE."
        )
    kind = "sde" if sde else "ode"
    if not any(there.startswith(kind) for there in ladder.calibrations):
        given = "" if checkpoint is None else f" --checkpoint {checkpoint}"
        raise ValueError(
            f"The ladder was saved without a calibration of the {'reverse SDE' if sde else 'probability flow'}. "
            f"Measure one with 'python -m mlem_jax calibrate{given}{' --sde' if sde else ''} --out FILE.npz', and add "
            "--calibration FILE.npz."
        )


def _plan(
    ladder: Ladder,
    file: Path | None,
    sde: bool,
    guidance: float | list[float] | None,
    budget: float | None,
    target: float | None,
    in_seconds: bool,
) -> Plan:
    if target is None:
        budget = _BUDGET if budget is None else budget
    if file is None:
        return ladder.plan(budget=budget, error=target, sde=sde, in_seconds=in_seconds)
    calibration = Calibration.load(file)
    calibration.require(ladder.term(sde=sde, guidance=guidance).levels, jnp.zeros(ladder.config.shape))
    return calibration.plan(budget=budget, error=target, in_seconds=in_seconds)


def _check_file(path: Path) -> None:
    """Raises before the long work rather than after it."""
    if path.exists():
        raise FileExistsError(f"{path} exists already; choose another --out or move it away.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"Cannot write to {path.parent}: {error}. Choose another --out.") from error
