"""The command `distil`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .errors import errors_explained, stop_explained
from .ladder_options import read_numbers
from .networks import Family, LevelOptions, Networks, Precision
from .options import Checkpoint, GuidanceScales
from .screen import say

Out = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER", help="Folder for samples, checkpoints, the finished levels and calibrations."
    ),
]
Sizes = Annotated[
    str | None,
    typer.Option(
        metavar="X,X,...",
        help="Million FLOPs per image of each new level, cheapest first, such as 1,6: 4 to 8 times less than the next.",
    ),
]
Seconds = Annotated[
    str | None,
    typer.Option(
        metavar="X,X,...",
        help="Instead of --mflops: wall-clock seconds of each new level for an image, as measured here in batches of "
        "32.",
    ),
]
DataPath = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Images as the network was trained on, as for train; without them it draws its own from noise.",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Without --data: how many images the network draws; by default a quarter of the training's evaluations.",
    ),
]
Steps = Annotated[int, typer.Option(min=1, metavar="N", help="Steps of the training.")]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Images in each step.")]
Pilots = Annotated[
    int,
    typer.Option(
        min=0, metavar="N", help="Images on which all levels are calibrated at the end; 0 leaves that out."
    ),
]


def distil(
    out: Out,
    mflops: Sizes = None,
    seconds: Seconds = None,
    network: Networks = None,
    checkpoint: Checkpoint = None,
    family: Family = None,
    dtype: Precision = "float32",
    guidance: GuidanceScales = None,
    data: DataPath = None,
    samples: Samples = None,
    steps: Steps = 5_000,
    batch_size: BatchSize = 64,
    pilots: Pilots = 32,
) -> None:
    """Makes cheaper levels for a network of others, or for the finest of a trained ladder: small ones that learn its
    output.

    After an interruption run the same command again: it continues. At the end it says what each level cost and how
    near it comes: distil --network large --mflops 1,6 --out small
    """
    console = Console()
    with errors_explained(console), stop_explained(console):
        if network and len(network) > 1:
            raise ValueError("distil makes levels for one network; give --network once.")
        if data is not None and samples is not None:
            raise ValueError(
                "--samples is for a network that draws its own images; leave it out with --data."
            )
        if (mflops is None) == (seconds is None):
            raise ValueError("Give the sizes of the levels, --mflops 1,6, say, or --seconds; not both.")
        sizes = None if mflops is None else read_numbers("--mflops", mflops, "1,6")
        times = None if seconds is None else read_numbers("--seconds", seconds, "0.001,0.005")
        ladder, scales = LevelOptions(checkpoint, network, guidance, family, dtype).read()
        from .. import diffusion
        from ..diffusion._training.distil import DISTILLING

        found = None
        if data is not None:
            height, width, channels = ladder.shape
            found = diffusion.load_data(
                data, (height, width, channels), labels=ladder.classes is not None, cache=out / "data"
            )
        distilled = diffusion.distil(
            ladder.predictors(guidance=scales)[-1],
            out,
            mflops=sizes,
            seconds=times,
            images=None if found is None else found.images,
            labels=None if found is None else found.labels,
            shape=ladder.shape,
            classes=ladder.classes,
            samples=samples,
            training=dataclasses.replace(
                DISTILLING, match_steps=steps, batch_size=batch_size, warmup_steps=min(300, steps // 10)
            ),
            pilots=pilots,
        )
    say(console, f"{distilled}\n")
