"""The command `sample`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import jax.random as jr
import numpy as np
import typer
from rich.console import Console

from .._io import write_safely
from .errors import errors_explained
from .images import (
    cut_settings,
    Known,
    MaskPath,
    preview_rows,
    preview_times,
    Previews,
    read_given,
    StartAt,
    StartFrom,
)
from .inputs import make_labels
from .networks import (
    decode_images,
    DecoderPath,
    Family,
    Latents,
    LevelOptions,
    Negative,
    Networks,
    Precision,
    read_decoder,
)
from .options import Budget, Checkpoint, GuidanceScales, InSeconds, Sde, Seed, TargetError
from .planning import PlanOptions
from .screen import say
from .single_steps import OnLevel, Spacing, StepMethod, Steps

# On the sheet: ten rows of ten are still large enough to be seen.
_SHOWN = 100
# Of grey and coloured pictures.
_CHANNELS = (1, 3)

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
    typer.Option(
        metavar="PATH", help="File or folder made by calibrate; by default what the ladder was saved with."
    ),
]


def sample(
    out: Out,
    checkpoint: Checkpoint = None,
    network: Networks = None,
    family: Family = None,
    dtype: Precision = "float32",
    decoder: DecoderPath = None,
    latents: Latents = "scaled",
    n: Count = 64,
    budget: Budget = None,
    error: TargetError = None,
    in_seconds: InSeconds = False,
    steps: Steps = None,
    method: StepMethod = None,
    spacing: Spacing = None,
    level: OnLevel = None,
    sde: Sde = False,
    label: Label = None,
    guidance: GuidanceScales = None,
    negative: Negative = None,
    seed: Seed = 0,
    image_format: ImageFormat = "float32",
    png: Png = None,
    batch_size: BatchSize = 64,
    calibration: CalibrationFile = None,
    start_from: StartFrom = None,
    start_at: StartAt = None,
    known: Known = None,
    mask: MaskPath = None,
    previews: Previews = None,
) -> None:
    """Draws images with a trained ladder of networks, or with networks of others, on all devices.

    Image number i depends on the seed and the plan, not on how many are drawn or in which batches. Run the same
    command again after an interruption: it draws the batches that are missing.

    samples.npz is read with numpy.load. It holds images, an array of shape (n, height, width, channels) with values of
    about -1 (black) to 1 (white), and for a ladder with classes labels, of shape (n,). samples.png shows the first 100.
    With --decoder these images are latents, and decoded.npz holds the pictures.

    Networks of others: sample --network small --network large --calibration FOLDER --out FOLDER, with what calibrate
    wrote; a single one, without: sample --network large --steps 20 --out FOLDER

    From a picture to others like it: sample --start-from PICTURE --start-at 2 --out FOLDER
    """
    console = Console()
    with errors_explained(console):
        wanted = PlanOptions(sde, budget, error, in_seconds, calibration, steps, method, spacing, level)
        levels = LevelOptions(checkpoint, network, guidance, family, dtype, negative)
        ladder, scales = levels.read()
        labels = make_labels(ladder, label, n)
        given = read_given(ladder.shape, n, start_from, start_at, known, mask)
        decode = read_decoder(decoder, latents, dtype, ladder.shape)
        plan = wanted.plan(ladder, scales, levels.written(sde), cut_settings(start_at))
        times = preview_times(plan.ts, start_at, previews)
        say(console, f"{plan}\n")
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
            as_bytes=image_format == "uint8" and decode is None,
            save_at=times,
            **given,
        )
        _finish(console, found, out, png, decode, batch_size, image_format == "uint8", times)


def _finish(
    console: Console,
    found: Any,
    out: Path,
    png: Path | None,
    decode: Any,
    batch_size: int,
    as_bytes: bool,
    times: Any,
) -> None:
    """Decodes samples that are latents, and writes the sheets of images and of previews."""
    from .. import diffusion

    def finished(images: np.ndarray, as_bytes: bool) -> np.ndarray:
        return images if decode is None else decode_images(decode, images, batch_size, as_bytes=as_bytes)

    written, images = [out / "samples.npz"], finished(found.images, as_bytes)
    if decode is not None:
        written.append(out / "decoded.npz")
        write_safely(written[-1], lambda file: np.savez(file, images=images))
    if images.shape[-1] not in _CHANNELS:
        say(
            console,
            f"{len(images)} samples of {' x '.join(map(str, images.shape[1:]))}: {written[0]}. No pictures are made of "
            "them; if they are latents, write --decoder FOLDER.",
        )
        return
    if times is not None and found.trajectories is not None:
        written.append(out / "previews.png")
        sheet = finished(preview_rows(found.trajectories, times), False)
        diffusion.save_grid(written[-1], sheet, columns=len(times))
    _write_pictures(console, images, out, png, written)


def _write_pictures(
    console: Console, images: np.ndarray, out: Path, png: Path | None, written: list[Path]
) -> None:
    """Writes images as a sheet and as single files, and names the files written."""
    from .. import diffusion

    written = [*written, out / "samples.png"]
    diffusion.save_grid(written[-1], images[:_SHOWN])
    if png is not None:
        diffusion.save_images(png, images)
    shown = "" if len(images) <= _SHOWN else f" (the first {_SHOWN})"
    say(console, f"{len(images)} images: {', '.join(map(str, written))}{shown}")
    if png is not None:
        say(console, f"As single files: {png}")
