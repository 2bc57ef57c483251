"""The options of `train` that describe a ladder, and the description that they make.

`mlem_jax.diffusion` is imported where it is used, so that `--help` does not wait for it."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import typer

_SHIPPED = Path(__file__).parents[1] / "diffusion" / "fashion_mnist" / "ladder.toml"
_STEPS = 10_000
# Distillation converges in about half as many steps as training on data.
_DISTILLATION = 0.5
# Pictures that a run draws on the way.
_SHEETS = 10
# A warm-up of more than a tenth of a short run would leave it too few steps at its full learning rate.
_LONGEST_WARMUP = 0.1

ConfigFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="TOML file of the levels; by default that of the shipped ladder."),
]
Levels = Annotated[
    str | None,
    typer.Option(metavar="K,K,...", help="Only these levels of the TOML file, counted from 1, such as 1,3."),
]
Mflops = Annotated[
    str | None,
    typer.Option(
        metavar="X,X,...",
        help="Instead of a TOML file: UNets of these million FLOPs per image, cheapest first, such as 2,15,90. "
        "Needs --shape.",
    ),
]
Shape = Annotated[
    str | None,
    typer.Option(metavar="H,W,C", help="With --mflops: height, width, channels, such as 64,64,3."),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="With --mflops: training steps of the finest level, 10,000 by default; the others get half.",
    ),
]


def describe_ladder(
    name: str,
    *,
    config: Path | None,
    levels: str | None,
    mflops: str | None,
    shape: str | None,
    steps: int | None,
) -> Any:
    """The `Config` that the options describe. Raises `ValueError`, in the words of the command line, where they
    contradict each other."""
    if mflops is None:
        for option, value in (("--shape", shape), ("--steps", steps)):
            if value is not None:
                raise ValueError(
                    f"{option} is for --mflops; without it the TOML file decides. Edit a copy of the file."
                )
        from ..diffusion import read_config

        found = read_config(config or _SHIPPED)
        return found if levels is None else _pick(found, levels)
    if config is not None or levels is not None:
        raise ValueError(
            "Give --mflops, which makes levels, or --config and --levels, which name them; not both."
        )
    return _preset(name, mflops, shape, steps or _STEPS)


def _preset(name: str, mflops: str, shape: str | None, steps: int) -> Any:
    if shape is None:
        raise ValueError("--mflops needs the shape of the images; write for example --shape 64,64,3.")
    sizes = _integers("--shape", shape, "64,64,3")
    if len(sizes) != 3:
        raise ValueError(f"--shape {shape}: height, width and channels are expected, such as 64,64,3.")
    targets = read_numbers("--mflops", mflops, "2,15,90")
    from ..diffusion import Training
    from ..diffusion._ladder import ladder_of_flops

    training = Training(
        steps=steps,
        match_steps=math.ceil(_DISTILLATION * steps),
        warmup_steps=min(Training.warmup_steps, int(_LONGEST_WARMUP * steps)),
        sheet_every=max(steps // _SHEETS, 1),
    )
    height, width, channels = sizes
    return ladder_of_flops((height, width, channels), targets, name=name, training=training)


def read_numbers(option: str, text: str, example: str) -> list[float]:
    """The numbers of an option. Raises `ValueError`."""
    try:
        return [float(x) for x in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text}: numbers are expected, such as {example}.") from None


def _pick(config: Any, levels: str) -> Any:
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
