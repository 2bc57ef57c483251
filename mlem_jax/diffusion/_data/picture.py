"""One picture file as an array of bytes, whatever its size, kind and depth."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

# Pillow's name of the pictures with that many channels.
MODES = {1: "L", 3: "RGB"}
# What white is in pictures of 16 bits, in units of what it is in those of 8.
_SIXTEEN_BITS = 65535 / 255


def read_picture(path: Path, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "h w c"]:
    """The picture resized to cover `shape` and cropped to its centre, grey for one channel and colour for three.
    What is transparent becomes white; 16 bits per channel and floating-point numbers are scaled to 8 bits.

    Raises what Pillow raises for files that it cannot read, and `ValueError` for numbers without a known scale.
    """
    height, width, channels = shape
    with Image.open(path) as opened:
        image = _eight_bits(ImageOps.exif_transpose(opened))
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        image = ImageOps.fit(image.convert(MODES[channels]), (width, height), Image.Resampling.LANCZOS)
        return np.asarray(image, np.uint8).reshape(shape)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey pictures of wider numbers, which Pillow would clip at 255, as bytes."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    numbers = np.asarray(image, np.float64)
    low, high = float(np.min(numbers)), float(np.max(numbers))
    if image.mode != "F":
        # 16-bit files that Pillow opens as 32 bits are among these.
        if not 0 <= low <= high <= 65535:
            raise ValueError(f"integers from {low:g} to {high:g}; 0 to 65535 are expected")
        numbers = numbers / _SIXTEEN_BITS
    elif 0 <= low <= high <= 1:
        numbers = 255 * numbers
    elif not 0 <= low <= high <= 255:
        raise ValueError(f"numbers from {low:g} to {high:g}; 0 to 1, or 0 to 255, are expected")
    return Image.fromarray(np.round(numbers).astype(np.uint8))
