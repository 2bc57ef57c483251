"""Images that samples start from, pixels that are known, and pictures of the way: options of `sample`.

`mlem_jax.diffusion` is imported where it is used, so that `--help` does not wait for it."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from .._calibration import MIDPOINT

StartFrom = Annotated[
    Path | None,
    typer.Option(
        "--start-from",
        metavar="PATH",
        help="Start from images instead of noise (image to image): a picture, a folder of --n pictures in the order of "
        "their names, or an .npy file of --n arrays. Needs --start-at.",
    ),
]
StartAt = Annotated[
    float | None,
    typer.Option(
        "--start-at",
        min=0,
        metavar="S",
        help="With --start-from: the noise added to images with values of -1 to 1. 0.5 keeps most of them, 5 little "
        "but the colours.",
    ),
]
Known = Annotated[
    Path | None,
    typer.Option(
        "--known",
        metavar="PATH",
        help="Images of which pixels are kept (inpainting), as for --start-from. Needs --mask.",
    ),
]
MaskPath = Annotated[
    Path | None,
    typer.Option(
        "--mask",
        metavar="PATH",
        help="With --known: a picture that is white where its pixels are known, or an .npy file of booleans.",
    ),
]
Previews = Annotated[
    int | None,
    typer.Option(
        "--previews",
        min=2,
        metavar="K",
        help="Also draw previews.png: the first 8 images at K of the steps, from the start to the end.",
    ),
]
# Rows of previews.png.
_ROWS = 8


def read_given(
    shape: tuple[int, ...],
    n: int,
    start_from: Path | None,
    start_at: float | None,
    known: Path | None,
    mask: Path | None,
) -> dict[str, Any]:
    """What these options say, as arguments of `mlem_jax.diffusion.sample`. Raises `ValueError`."""
    pairs = (("--start-from", start_from, "--start-at", start_at), ("--known", known, "--mask", mask))
    for first, one, second, other in pairs:
        if (one is None) != (other is None):
            there, missing = (second, first) if one is None else (first, second)
            raise ValueError(f"{there} needs {missing}; give both, or neither.")
    return {
        "start_from": None if start_from is None else _read("--start-from", start_from, shape, n),
        "start_at": start_at,
        "known": None if known is None else _read("--known", known, shape, n),
        "mask": None if mask is None else _read_mask(mask, shape, n),
    }


def cut_settings(start_at: float | None) -> dict[str, Any]:
    """What a plan has to be made with so that it can begin in the middle: fitted steps cannot."""
    return {} if start_at is None else {"coins": MIDPOINT}


def preview_times(ts: np.ndarray, start_at: float | None, previews: int | None) -> np.ndarray | None:
    """Some of the times that a plan visits, evenly spaced in its steps."""
    if previews is None:
        return None
    visited = ts if start_at is None else ts[ts <= start_at]
    return visited[np.unique(np.linspace(0, max(len(visited) - 1, 0), previews).round().astype(int))]


def preview_rows(trajectories: np.ndarray, times: np.ndarray) -> np.ndarray:
    """States of the first images, row by row, scaled to keep their range whatever the noise: `y / sqrt(1 + s**2)`."""
    scale = np.sqrt(1 + times**2).reshape(1, -1, 1, 1, 1)
    return (trajectories[:_ROWS] / scale).reshape(-1, *trajectories.shape[2:]).astype(np.float32)


def _read(option: str, path: Path, shape: tuple[int, ...], n: int) -> np.ndarray:
    """One image, or `n`, as numbers from -1 to 1."""
    if not path.exists():
        raise ValueError(f"{option} {path} does not exist.")
    if path.suffix == ".npy":
        images = _load(option, path)
        if images.dtype == np.uint8:
            images = images / np.float32(127.5) - np.float32(1)
        if not np.issubdtype(images.dtype, np.floating):
            raise ValueError(
                f"{option} {path} holds {images.dtype}; bytes, or numbers from -1 to 1, are expected."
            )
    else:
        images = np.stack([_picture(option, file, shape) for file in _files(option, path)])
        images = images / np.float32(127.5) - np.float32(1)
    return _checked(option, path, images, shape, n)


def _read_mask(path: Path, shape: tuple[int, ...], n: int) -> np.ndarray:
    if not path.exists():
        raise ValueError(f"--mask {path} does not exist.")
    if path.suffix == ".npy":
        mask = _load("--mask", path)
        if mask.dtype != bool:
            raise ValueError(
                f"--mask {path} holds {mask.dtype}; booleans are expected, true where pixels are known."
            )
        if mask.ndim == 2:
            mask = mask[..., None]
    else:
        files = _files("--mask", path)
        mask = np.stack([_picture("--mask", file, (*shape[:2], 1)) > 127 for file in files])
    mask = np.broadcast_to(mask, (*mask.shape[:-1], shape[-1])) if mask.shape[-1] == 1 else mask
    return _checked("--mask", path, mask, shape, n)


def _checked(option: str, path: Path, images: np.ndarray, shape: tuple[int, ...], n: int) -> np.ndarray:
    images = images[0] if len(images) == 1 and images.ndim == len(shape) + 1 else images
    if images.shape not in (shape, (n, *shape)):
        raise ValueError(
            f"{option} {path} holds an array of shape {images.shape}; one image of shape {shape} is expected, or "
            f"--n of them, {(n, *shape)}."
        )
    return images


def _load(option: str, path: Path) -> np.ndarray:
    try:
        return np.load(path)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{option} {path} is not an .npy file, or damaged ({error}).") from None


def _files(option: str, path: Path) -> list[Path]:
    from ..diffusion._data.folder import picture_paths

    files = picture_paths(path) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{option} {path} holds no pictures.")
    return files


def _picture(option: str, path: Path, shape: tuple[int, ...]) -> np.ndarray:
    from ..diffusion._data.picture import MODES, read_picture

    height, width, channels = shape
    if channels not in MODES:
        raise ValueError(
            f"{option} {path} is a picture, and the levels make arrays of {' x '.join(map(str, shape))}; write their "
            "latents as an .npy file."
        )
    try:
        return read_picture(path, (height, width, channels))
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{option} {path} cannot be read as a picture ({error}).") from None
