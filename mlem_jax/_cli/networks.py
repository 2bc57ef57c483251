"""The levels of a command: a ladder's folder, or networks that others have trained; and a decoder for their latents.

`mlem_jax.diffusion` is imported where it is used, so that `--help` does not wait for it."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from .inputs import apply_scales, ladder_folder, read_ladder, read_scales

Networks = Annotated[
    list[Path] | None,
    typer.Option(
        "--network",
        metavar="PATH",
        help="Instead of a ladder: a network of others, the folder that diffusers' save_pretrained wrote or a "
        ".safetensors or .npz file, or the --out of distil; once for each, cheapest first.",
    ),
]
Family = Annotated[
    Literal["unet2d", "dit", "sit", "edm2", "jit"] | None,
    typer.Option(
        metavar="NAME",
        help="Architecture of the networks, where their files do not tell: unet2d, dit, sit, edm2 or jit.",
    ),
]
Precision = Annotated[
    Literal["float32", "bfloat16"],
    typer.Option("--dtype", metavar="TYPE", help="In which networks compute: float32 or bfloat16."),
]
Negative = Annotated[
    int | None,
    typer.Option(
        "--negative",
        min=0,
        metavar="N",
        help="With --guidance: the label that is steered away from, instead of no label.",
    ),
]
DecoderPath = Annotated[
    Path | None,
    typer.Option(
        "--decoder",
        metavar="FOLDER",
        help="AutoencoderKL that diffusers' save_pretrained wrote: samples are latents, and pictures come from them.",
    ),
]
Latents = Annotated[
    Literal["scaled", "edm2"],
    typer.Option(
        metavar="KIND",
        help="With --decoder: how its latents were made for the networks, scaled as its configuration says, or "
        "standardised for edm2.",
    ),
]
# What to write for an argument of load_network.
_OPTIONS = {"family": "--family NAME", "null": "--negative N"}


@dataclasses.dataclass(frozen=True)
class LevelOptions:
    """What names the levels, as the options of these names say."""

    checkpoint: Path | None
    networks: list[Path] | None
    guidance: list[float] | None
    family: str | None
    dtype: str
    negative: int | None = None

    def read(self) -> tuple[Any, float | list[float] | None]:
        """The ladder; and the scales of guidance that it has yet to be given. Raises `ValueError` and what reading
        raises."""
        if self.negative is not None and not self.guidance:
            raise ValueError("--negative is for guidance; add --guidance SCALE, or leave it out.")
        if self.networks:
            return self._read_networks(self.networks), None
        if self.family is not None or self.dtype != "float32":
            raise ValueError("--family and --dtype are for --network; a trained ladder knows its own.")
        ladder = read_ladder(self.checkpoint)
        scales = read_scales(ladder, self.guidance)
        if self.negative is None:
            return ladder, scales
        return apply_scales(ladder, scales, self.negative), None

    def _read_networks(self, paths: list[Path]) -> Any:
        if self.checkpoint is not None:
            raise ValueError(
                "Give --checkpoint, the folder of a ladder, or --network for each level; not both."
            )
        scales = self.guidance or [None]
        if len(scales) not in (1, len(paths)):
            raise ValueError(
                f"--guidance was given {len(scales)} times for {len(paths)} networks; give it once for all, or "
                f"{len(paths)} times."
            )
        from ..diffusion import load_ladder, PredictorLadder

        each = scales * len(paths) if len(scales) == 1 else scales
        levels = []
        for path, scale in zip(paths, each, strict=True):
            place = ladder_folder(path)
            levels += [self._read_network(path, scale)] if place is None else load_ladder(place).predictors()
        return PredictorLadder(levels)

    def _read_network(self, path: Path, scale: float | None) -> Any:
        from ..diffusion import load_network
        from ..diffusion._pretrained import NotInFilesError

        try:
            return load_network(
                path, family=self.family, dtype=self.dtype, guidance=scale, null=self.negative
            )
        except NotInFilesError as error:
            option = _OPTIONS[error.argument]
            raise ValueError(f"{error.problem} Add {option}, {error.expected}.") from error

    def written(self, sde: bool) -> str:
        """The options that calibrate and sample have to agree in, as they are written."""
        options = "".join(f" --network {path}" for path in self.networks or ())
        options += "" if self.family is None else f" --family {self.family}"
        options += "" if self.dtype == "float32" else f" --dtype {self.dtype}"
        options += "" if self.checkpoint is None else f" --checkpoint {self.checkpoint}"
        options += " --sde" if sde else ""
        options += "".join(f" --guidance {scale}" for scale in self.guidance or ())
        return options + ("" if self.negative is None else f" --negative {self.negative}")


def read_decoder(
    path: Path | None, latents: Literal["scaled", "edm2"], dtype: str, shape: tuple[int, ...]
) -> Any:
    """The decoder, if one is asked for. Raises `ValueError` for one that does not take latents of this shape, and
    what reading raises."""
    if path is None:
        return None
    from ..diffusion import load_decoder

    decoder = load_decoder(path, dtype=dtype, latents=latents)
    channels = decoder.config.latent_channels
    if len(shape) != 3 or shape[2] != channels:
        raise ValueError(
            f"--decoder {path} takes latents of {channels} channels, and the levels make arrays of "
            f"{' x '.join(map(str, shape))}. Leave it out if these are pictures already."
        )
    return decoder


def decode_images(decoder: Any, latents: np.ndarray, batch_size: int, *, as_bytes: bool) -> np.ndarray:
    """The pictures of latents, some at a time; as bytes or numbers."""
    import equinox as eqx

    from ..diffusion._sampling.pictures import as_bytes as to_bytes

    call = eqx.filter_jit(lambda decoder, z: decoder(z))
    # All batches of one size, so that one program serves.
    count = -(-len(latents) // batch_size) * batch_size
    rows = np.minimum(np.arange(count), len(latents) - 1).reshape(-1, batch_size)
    pieces = [np.asarray(call(decoder, latents[batch])) for batch in rows]
    images = np.concatenate(pieces)[: len(latents)]
    return to_bytes(images) if as_bytes else images
