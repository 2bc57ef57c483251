"""The command `train`."""

import dataclasses
import math
import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..diffusion import (
    Config,
    Data,
    FASHION_MNIST,
    Ladder,
    load_data,
    load_ladder,
    read_config,
    train_ladder,
    Training,
)
from ..diffusion._ladder import ladder_of_flops, level_sizes
from ..diffusion._training import check_labels

_CONFIG = Path(__file__).parents[1] / "diffusion" / "fashion_mnist" / "ladder.toml"
_STEPS = 10_000
# Matching converges in about half as many steps as training on data.
_MATCHING = 0.5
_SHEETS = 10


def train(
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Folder for config.toml, checkpoints, losses.csv, sheets and the finished ladder.",
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            show_default=False,
            help="Folder of pictures (any size), .npy or .npz file, or folder of MNIST's IDX files; by default "
            "Debian's Fashion-MNIST.",
        ),
    ] = FASHION_MNIST,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML file of the levels; by default that of the shipped ladder."),
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(
            metavar="K,K,...", help="Only these levels of the TOML file, counted from 1, such as 1,3."
        ),
    ] = None,
    mflops: Annotated[
        str | None,
        typer.Option(
            metavar="X,X,...",
            help="Instead of a TOML file: UNets of these million FLOPs per image, cheapest first, such as 2,15,90. "
            "Needs --shape.",
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(metavar="H,W,C", help="With --mflops: height, width, channels, such as 64,64,3."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="With --mflops: training steps of the finest level, 10,000 by default; the others get half.",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            "--distil",
            metavar="FOLDER",
            help="Folder of an earlier ladder: keep its finest level, distil the others from it further.",
        ),
    ] = None,
    pilots: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Images on which the ladder is calibrated at the end, for the probability flow and the reverse SDE; 0 "
            "leaves that for the command calibrate.",
        ),
    ] = 128,
) -> None:
    """Trains a ladder of levels on your images, on all devices; with their labels if the TOML file has classes.

    Says how large the levels are, then trains the finest one, then matches the smaller ones to it. Run the same
    command again after an interruption: it continues from the last checkpoint. For a finer choice edit the
    config.toml that it leaves in --out, and give it as --config with another --out.

    Pictures of 178 x 218, CelebA's, cropped to squares: train --data img_align_celeba --shape 64,64,3
    --mflops 2,15,90 --out celeba
    """
    console = Console()
    try:
        description = _describe(out, config, levels, mflops, shape, steps)
        earlier = None if start is None else load_ladder(start)
        found = load_data(data, description.shape, labels=description.classes is not None, cache=out / "data")
        check_labels(description.classes, found.labels, len(found.images))
        _tell_data(console, found)
        console.print(_sizes_table(description))
        ladder = train_ladder(
            description,
            out,
            found.images,
            found.held_out,
            labels=found.labels,
            held_out_labels=found.held_out_labels,
            start=earlier,
            pilots=pilots,
            data_name=str(data),
        )
    except KeyboardInterrupt as stopped:
        said = str(stopped) or "Stopped. What is saved stays: run the same command again to continue."
        console.print(said, highlight=False, soft_wrap=True)
        raise typer.Exit(128 + getattr(stopped, "signum", signal.SIGINT)) from None
    except (FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    except (FloatingPointError, OSError) as error:
        console.print(f"[red]Stopped:[/red] {error}", highlight=False)
        raise typer.Exit(1) from error
    console.print(_table(ladder))
    console.print(
        "MFLOP: per image; to finest: mean squared distance to finest level's output.", highlight=False
    )
    if ladder.calibrations:
        following = f"Images: python -m mlem_jax sample --checkpoint {out} --n 64 --out FOLDER"
    elif len(ladder.networks) > 1:
        following = f"Next: python -m mlem_jax calibrate --checkpoint {out} --out FILE.npz"
    else:
        following = (
            "One level needs no plan: draw images with its term and any solver, such as diffrax.Euler()."
        )
    console.print(following, highlight=False, soft_wrap=True)
    console.print(f"In Python: mlem_jax.diffusion.load_ladder({str(out / 'ladder')!r})", soft_wrap=True)


def _describe(
    out: Path,
    config: Path | None,
    levels: str | None,
    mflops: str | None,
    shape: str | None,
    steps: int | None,
) -> Config:
    if mflops is None:
        for name, value in (("--shape", shape), ("--steps", steps)):
            if value is not None:
                raise ValueError(
                    f"{name} is for --mflops; without it the TOML file says so. Edit a copy of it."
                )
        found = read_config(config or _CONFIG)
        return found if levels is None else _pick(found, levels)
    if config is not None or levels is not None:
        raise ValueError(
            "Give --mflops, which makes levels, or --config and --levels, which name them; not both."
        )
    if shape is None:
        raise ValueError("--mflops needs the shape of the images; write for example --shape 64,64,3.")
    sizes = _integers("--shape", shape, "64,64,3")
    if len(sizes) != 3:
        raise ValueError(f"--shape {shape}: height, width and channels are expected, such as 64,64,3.")
    try:
        targets = [float(x) for x in mflops.split(",")]
    except ValueError:
        raise ValueError(f"--mflops {mflops}: numbers are expected, such as 2,15,90.") from None
    steps = steps or _STEPS
    training = Training(
        steps=steps,
        match_steps=math.ceil(_MATCHING * steps),
        warmup_steps=min(Training.warmup_steps, steps // 10),
        sheet_every=max(steps // _SHEETS, 1),
    )
    height, width, channels = sizes
    return ladder_of_flops((height, width, channels), targets, name=out.resolve().name, training=training)


def _pick(config: Config, levels: str) -> Config:
    count = len(config.levels)
    chosen = _integers("--levels", levels, "1,3")
    if sorted(set(chosen)) != chosen or not all(1 <= k <= count for k in chosen):
        raise ValueError(
            f"--levels {levels}: increasing numbers from 1 to {count} are expected, such as 1,{count}."
        )
    return dataclasses.replace(config, levels=tuple(config.levels[k - 1] for k in chosen))


def _integers(option: str, text: str, example: str) -> list[int]:
    try:
        return [int(x) for x in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text}: integers are expected, such as {example}.") from None


def _tell_data(console: Console, data: Data) -> None:
    console.print(f"{len(data.images)} images to train on, {len(data.held_out)} held out.", highlight=False)
    if data.skipped:
        shown = "; ".join(data.skipped[:3]) + ("; ..." if len(data.skipped) > 3 else "")
        console.print(
            f"[yellow]{len(data.skipped)} files cannot be read and are left out:[/yellow] ",
            end="",
            highlight=False,
        )
        console.print(shown, highlight=False, markup=False, soft_wrap=True)


def _sizes_table(config: Config) -> Table:
    table = Table("level", "network", "parameters", "MFLOP per image", "relative cost")
    sizes = level_sizes(config)
    for k, (kind, parameters, flops) in enumerate(sizes):
        relative = f"{flops / sizes[-1][2]:.3g}"
        table.add_row(str(k + 1), kind, f"{parameters:,}", f"{flops / 1e6:.2f}", relative)
    return table


def _table(ladder: Ladder) -> Table:
    card = ladder.card
    before = card.get("to_finest_before")
    # Headers that leave room for all columns on 80 places.
    table = Table(
        "level",
        "parameters",
        "MFLOP",
        "held-out loss",
        "to finest",
    )
    if before is not None:
        table.add_column("before")
    for k, parameters in enumerate(card["parameters"]):
        table.add_row(
            str(k + 1),
            f"{parameters:,}",
            f"{card['flops_per_image'][k] / 1e6:.2f}",
            f"{card['held_out_loss']['data'][k]:.4f}",
            f"{card['held_out_loss']['to_finest'][k]:.4f}",
            *(() if before is None else (f"{before[k]:.4f}",)),
        )
    return table
