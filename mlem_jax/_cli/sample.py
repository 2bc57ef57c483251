"""The command `sample`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from .errors import errors_explained
from .inputs import make_labels, make_plan, read_ladder, read_scales
from .options import Budget, Checkpoint, GuidanceScales, InSeconds, one_of, Sde, Seed, TargetError
from .screen import say

# On the sheet: ten rows of ten are still large enough to be seen.
_SHOWN = 100

Out = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER",
        help="Folder for samples.npz and samples.png; the same command again continues a stopped run, and a larger "
        "--n adds images.",
    ),
]
Count = Annotated[int, typer.Option("--n", min=1, metavar="N", help="How many images.")]
Label = Annotated[
    int | None,
    typer.Option(
        "--label",
        metavar="N",
        help="Label of all images, for a ladder with classes (their number: no label); by default one class after "
        "the other.",
    ),
]
ImageFormat = Annotated[
    Literal["float32", "uint8"],
    typer.Option(
        "--format",
        metavar="TYPE",
        help="Type of the images in samples.npz: float32, about -1 to 1, or uint8, 0 to 255.",
    ),
]
Png = Annotated[
    Path | None,
    typer.Option(
        "--png", metavar="FOLDER", help="Also write every image as a PNG: FOLDER/00000000.png and so on."
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, metavar="N", help="Images that a device holds at a time; bounds the memory.")
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File made by calibrate; by default what the ladder was saved with."),
]


def sample(
    out: Out,
    checkpoint: Checkpoint = None,
    n: Count = 64,
    budget: Budget = None,
    error: TargetError = None,
    in_seconds: InSeconds = False,
    sde: Sde = False,
    label: Label = None,
    guidance: GuidanceScales = None,
    seed: Seed = 0,
    image_format: ImageFormat = "float32",
    png: Png = None,
    batch_size: BatchSize = 64,
    calibration: CalibrationFile = None,
) -> None:
    """Draws images with a trained ladder of networks, on all devices.

    Image number i depends on the seed and the plan, not on how many are drawn or in which batches. Run the same
    command again after an interruption: it draws the batches that are missing.

    samples.npz is read with numpy.load. It holds images, an array of shape (n, height, width, channels) with values of
    about -1 (black) to 1 (white), and for a ladder with classes labels, of shape (n,). samples.png shows the first 100.
    """
    console = Console()
    budget = one_of(budget, error)
    with errors_explained(console):
        ladder = read_ladder(checkpoint)
        labels = make_labels(ladder, label, n)
        scales = read_scales(ladder, guidance)
        plan = make_plan(
            ladder,
            checkpoint=checkpoint,
            file=calibration,
            sde=sde,
            scales=scales,
            given_scales=guidance,
            budget=budget,
            error=error,
            in_seconds=in_seconds,
        )
        say(console, f"{plan}\n")
        import jax.random as jr

        from .. import diffusion

        found = diffusion.sample(
            ladder,
            n=n,
            plan=plan,
            key=jr.key(seed),
            stochasticity=float(sde),
            labels=labels,
            guidance=scales,
            batch_size=batch_size,
            out=out,
            as_bytes=image_format == "uint8",
        )
        _write_pictures(console, found.images, out, png)


def _write_pictures(console: Console, images: Any, out: Path, png: Path | None) -> None:
    from .. import diffusion

    picture = out / "samples.png"
    diffusion.save_grid(picture, images[:_SHOWN])
    if png is not None:
        diffusion.save_images(png, images)
    shown = "" if len(images) <= _SHOWN else f" (the first {_SHOWN})"
    say(console, f"{len(images)} images: {out / 'samples.npz'}, {picture}{shown}")
    if png is not None:
        say(console, f"As single files: {png}")
