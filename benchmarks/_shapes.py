"""Synthetic colour images of any size, drawn in no time, for tests of studies."""

import numpy as np


def colour_images(count: int, side: int, *, seed: int = 0) -> np.ndarray:
    """Bytes `(count, side, side, 3)`: a background shaded from one colour to another, and before it three shapes,
    discs or boxes, with edges one pixel soft."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j].astype(np.float32)
    found = np.empty((count, side, side, 3), np.uint8)
    for image in found:
        angle, (low, high) = draw.uniform(0, 2 * np.pi), draw.uniform(-0.6, 0.6, (2, 3))
        along = 0.5 + 0.5 * (np.cos(angle) * (2 * x - 1) + np.sin(angle) * (2 * y - 1)) / np.sqrt(2)
        pixels = low + along[..., None] * (high - low)
        for _ in range(3):
            centre, radius, colour = (
                draw.uniform(0.2, 0.8, 2),
                draw.uniform(0.08, 0.25),
                draw.uniform(-1, 1, 3),
            )
            away = np.abs(x - centre[0]), np.abs(y - centre[1])
            distance = np.hypot(*away) if draw.uniform() < 0.5 else np.maximum(*away)
            inside = np.clip(0.5 + side * (radius - distance), 0, 1)[..., None]
            pixels += inside * (colour - pixels)
        image[:] = np.round(127.5 * (pixels + 1))
    return found
