"""Weights of a checkpoint from its names and a seed, so that fixtures store none. Needs numpy only: the reference's
environment imports it too."""

import json
import math
import zlib
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures" / "pretrained"


def weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A float32 array that depends on nothing else. Matrices and kernels keep the size of what they are applied to,
    norms' scales are around 1, biases around 0: none is neutral, so that none can be left out unnoticed."""
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    values = generator.standard_normal(shape)
    if name.endswith("freqs"):
        values = 2 * math.pi * values
    elif name.endswith("phases"):
        values = math.pi * values
    elif len(shape) >= 2:
        values = values / math.sqrt(math.prod(shape[1:]))
    else:
        values = 0.3 * values + (name.endswith(("weight", "gain")) and "proj" not in name)
    return np.asarray(values, np.float32)


def weights(shapes: dict[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint."""
    return {name: weight(name, tuple(shape), seed) for name, shape in shapes.items()}


def save_case(name: str, about: dict, arrays: dict[str, np.ndarray]) -> Path:
    """Writes one fixture: `about` (configuration, seed, shapes of the weights) and arrays."""
    path = FIXTURES / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez_compressed(path, about=text, **arrays)
    return path


def load_case(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """What `save_case` wrote."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return json.loads(arrays.pop("about").tobytes()), arrays
