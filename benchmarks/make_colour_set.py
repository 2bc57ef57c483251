"""A synthetic colour data set: cartoon faces as PNG files, for tests of training on a folder of images.

Run `python benchmarks/make_colour_set.py --out faces` (seconds). Face number i depends on the seed and i only: skin,
hair, eyes, mouth, shirt and background vary, and nothing else is in it. It is no substitute for photographs; results on
it are to be called synthetic.
"""

import argparse
import colorsys
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from rich.progress import track

# Images are drawn at four times their size and reduced, for smooth edges.
_FINE = 4


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(saturation, 1), min(value, 1))
    return round(255 * red), round(255 * green), round(255 * blue)


def face(seed: int, number: int, size: int) -> Image.Image:
    """One picture of `size` x `size` pixels."""
    rng = np.random.default_rng((seed, number))
    whole = _FINE * size
    image = Image.new(
        "RGB", (whole, whole), _colour(rng.uniform(), rng.uniform(0.1, 0.6), rng.uniform(0.5, 1))
    )
    draw = ImageDraw.Draw(image)

    def ellipse(x: float, y: float, width: float, height: float, fill: tuple[int, int, int]) -> None:
        box = (x - width, y - height, x + width, y + height)
        draw.ellipse([whole * z for z in box], fill=fill)

    x, y = 0.5 + rng.normal(0, 0.03), 0.5 + rng.normal(0, 0.02)
    width, height = rng.uniform(0.2, 0.27), rng.uniform(0.26, 0.33)
    skin = _colour(rng.uniform(0.04, 0.1), rng.uniform(0.25, 0.6), rng.uniform(0.4, 1))
    hair = _colour(rng.uniform(0.02, 0.14), rng.uniform(0.2, 0.9), rng.uniform(0.1, 0.8))
    shirt = _colour(rng.uniform(), rng.uniform(0.3, 1), rng.uniform(0.3, 0.9))
    length = rng.uniform(0, 0.25)
    ellipse(x, y - 0.04 + length / 2, width + 0.06, height + length / 2, hair)
    ellipse(x, 1.08, 0.38, 0.25, shirt)
    draw.rectangle([whole * z for z in (x - 0.07, y + 0.15, x + 0.07, y + 0.38)], fill=skin)
    ellipse(x, y, width, height, skin)
    # The fringe, whose parting is anywhere.
    tilt = rng.normal(0, 12)
    box = [whole * z for z in (x - width, y - height - 0.02, x + width, y + 0.1)]
    draw.chord(box, 200 + tilt, 340 + tilt, fill=hair)
    apart, iris = rng.uniform(0.08, 0.11), _colour(rng.uniform(0.05, 0.65), 0.7, rng.uniform(0.2, 0.7))
    gaze = rng.normal(0, 0.008)
    for side in (-1, 1):
        ellipse(x + side * apart, y - 0.02, 0.05, 0.033, (255, 255, 255))
        ellipse(x + side * apart + gaze, y - 0.02, 0.024, 0.026, iris)
    # From sad to glad.
    smile = rng.uniform(-0.5, 1)
    points = []
    for u in np.linspace(-1, 1, 15):
        points.append((whole * (x + 0.09 * u), whole * (y + 0.17 + 0.05 * smile * math.cos(math.pi * u / 2))))
    draw.line(
        points, fill=_colour(0.98, 0.7, rng.uniform(0.4, 0.8)), width=round(0.03 * whole), joint="curve"
    )
    return image.resize((size, size), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder for the pictures")
    parser.add_argument("--n", type=int, default=4000, help="how many (default 4000)")
    parser.add_argument("--size", type=int, default=64, help="width and height in pixels (default 64)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.n < 1 or arguments.size < 8:
        parser.error("--n of at least 1 and --size of at least 8 are expected.")
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists already; choose another folder or move it away.")
    arguments.out.mkdir(parents=True)
    for number in track(range(arguments.n), "drawing"):
        face(arguments.seed, number, arguments.size).save(arguments.out / f"{number:06d}.png")


if __name__ == "__main__":
    main()
