"""Samples as pictures: bytes, sheets of many, single files."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from ..._io import full_disk_explained, make_writable, write_safely

Images = Shaped[np.ndarray, "n h w ..."]


def as_bytes(images: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Values from -1 to 1 as 0 to 255; others are clipped."""
    return np.round(255 * (np.clip(images, -1, 1) + 1) / 2).astype(np.uint8)


def save_grid(path: str | Path, images: Images, *, columns: int | None = None) -> None:
    """Writes images side by side as one PNG, pixel for pixel, atomically.

    **Arguments:** `images`, `(n, h, w)`, `(n, h, w, 1)` or `(n, h, w, 3)`, bytes or values in `[-1, 1]` (others are
    clipped); `columns`, by default as many as rows.

    Raises `ValueError` for other shapes, or no image.
    """
    _write(Path(path), make_grid(images, columns=columns))


def make_grid(images: Images, *, columns: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of the picture that `save_grid` writes."""
    pixels = _pixels("save_grid", images)
    count, height, width, _ = pixels.shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, 3), np.uint8)
    sheet[:count] = pixels
    sheet = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return sheet.reshape(rows * height, columns * width, 3)


def save_images(folder: str | Path, images: Images) -> None:
    """Writes each image as a separate PNG, `00000000.png` and so on, grey or in colour.

    **Arguments:** `folder`, made where it is missing; `images` as for [`mlem_jax.diffusion.save_grid`][]. Files that
    are there already are kept.

    Raises `ValueError` for other shapes, or no image, `OSError` for a place that cannot be written.
    """
    pixels = _pixels("save_images", images)
    folder = Path(folder)
    make_writable(folder, "Choose another folder.")
    grey = images.ndim == 3 or images.shape[3] == 1
    with full_disk_explained(folder):
        for index, image in enumerate(pixels):
            path = folder / f"{index:08d}.png"
            if not path.exists():
                _write(path, image[..., 0] if grey else image)


def _pixels(function: str, images: Images) -> UInt8[np.ndarray, "n h w 3"]:
    if not len(images) or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise ValueError(
            f"{function} was given images of shape {images.shape}; (n, h, w), (n, h, w, 1) or (n, h, w, 3) with "
            "at least one image is expected."
        )
    pixels = images if images.dtype == np.uint8 else as_bytes(images)
    return np.broadcast_to(pixels.reshape(*pixels.shape[:3], -1), (*pixels.shape[:3], 3))


def _write(path: Path, pixels: UInt8[np.ndarray, "..."]) -> None:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    write_safely(path, lambda file: image.save(file, format="png"))
