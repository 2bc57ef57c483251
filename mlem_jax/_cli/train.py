"""The command `train`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .errors import check_place, errors_explained, stop_explained
from .ladder_options import ConfigFile, describe_ladder, Levels, Mflops, Shape, Steps
from .training_report import report_data, report_ladder, sizes_table

Out = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER",
        help="Folder for config.toml, checkpoints, losses.csv, sheets and the finished ladder.",
    ),
]
DataPath = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Folder of pictures (any size), .npy or .npz file, or folder of MNIST's IDX files; by default "
        "Debian's Fashion-MNIST.",
    ),
]
Start = Annotated[
    Path | None,
    typer.Option(
        "--from",
        "--distil",
        metavar="FOLDER",
        help="Folder of an earlier ladder: keep its finest level, distil the others from it further.",
    ),
]
Pilots = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Images on which the ladder is calibrated at the end, for the probability flow and the reverse SDE; 0 "
        "leaves that for the command calibrate.",
    ),
]
TensorBoard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Also write losses and sheets for TensorBoard, into --out/tensorboard; needs the extra tensorboard.",
    ),
]


def train(
    out: Out,
    data: DataPath = None,
    config: ConfigFile = None,
    levels: Levels = None,
    mflops: Mflops = None,
    shape: Shape = None,
    steps: Steps = None,
    start: Start = None,
    pilots: Pilots = 128,
    tensorboard: TensorBoard = False,
) -> None:
    """Trains a ladder of levels on your images, on all devices; with their labels if the TOML file has classes.

    Prints the sizes of the levels, trains the finest one, then distils the smaller ones from it. After an interruption
    run the same command again: it continues from the last checkpoint. For a finer choice edit the config.toml that it
    leaves in --out, and give it as --config with another --out.

    Pictures of 178 x 218, CelebA's, cropped to squares: train --data img_align_celeba --shape 64,64,3
    --mflops 2,15,90 --out celeba
    """
    console = Console()
    with errors_explained(console), stop_explained(console):
        description = describe_ladder(
            out.resolve().name, config=config, levels=levels, mflops=mflops, shape=shape, steps=steps
        )
        if tensorboard:
            training = dataclasses.replace(description.training, tensorboard=True)
            description = dataclasses.replace(description, training=training)
        from .. import diffusion
        from ..diffusion._ladder import level_sizes
        from ..diffusion._training import check_labels

        earlier = None if start is None else diffusion.load_ladder(start)
        # Before pictures are decoded. The folder itself is made by the run.
        check_place(out if out.exists() else out.parent, "--out")
        path = diffusion.FASHION_MNIST if data is None else data
        found = diffusion.load_data(
            path, description.shape, labels=description.classes is not None, cache=out / "data"
        )
        check_labels(description.classes, found.labels, len(found.images))
        report_data(console, found)
        console.print(sizes_table(level_sizes(description)))
        ladder = diffusion.train_ladder(
            description,
            out,
            found.images,
            found.held_out,
            labels=found.labels,
            held_out_labels=found.held_out_labels,
            start=earlier,
            pilots=pilots,
            data_name=str(path),
        )
    report_ladder(console, ladder, out)
