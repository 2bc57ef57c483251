"""The command `distance`."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from .errors import errors_explained
from .screen import say

_PIXELS = "pixels"
# What sample leaves in its folder, best first: pictures rather than latents.
_SAMPLES = ("decoded.npz", "samples.npz")

Images = Annotated[
    Path,
    typer.Argument(
        metavar="IMAGES", help="Folder that sample made, or an .npz or .npy file with an array of images."
    ),
]
Others = Annotated[Path, typer.Argument(metavar="OTHERS", help="What to compare with, of the same kinds.")]
Features = Annotated[
    str,
    typer.Option(
        metavar="MODULE:FUNCTION",
        help="A function of yours, such as my_network:features, from images (n, height, width, channels) with values "
        "of -1 to 1 to an array (n, features); or pixels.",
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, metavar="N", help="Images that the function is given at a time.")
]


def distance(images: Images, others: Others, features: Features, batch_size: BatchSize = 256) -> None:
    """Prints the Frechet distance between two sets of images, in the features of a network that you name.

    It is FID only if these are the published Inception network's. Compare numbers of one function and equally many
    images only.
    """
    console = Console()
    with errors_explained(console):
        function = _function(features)
        one, other = _images(images), _images(others)
        from .. import diffusion

        found = diffusion.frechet_distance(one, other, features=function, batch_size=batch_size)
    say(console, f"Frechet distance of {features}: {found:.6g} ({len(one)} and {len(other)} images)")


def _function(name: str) -> Callable[[Any], Any]:
    if name == _PIXELS:
        return lambda images: images.reshape(len(images), -1)
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(
            f"--features {name}: MODULE:FUNCTION is expected, such as my_network:features, or pixels."
        )
    # A module beside the command, as python -m finds it.
    sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--features {name} cannot be imported ({error}).") from None
    finally:
        sys.path.pop(0)
    if not callable(function):
        raise ValueError(f"--features {name} is a {type(function).__name__}; a function is expected.")
    return function


def _images(path: Path) -> np.ndarray:
    files = [path / name for name in _SAMPLES] if path.is_dir() else [path]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise ValueError(
            f"{path} holds no images; a folder that sample made, or an .npz or .npy file, is expected."
        )
    try:
        found = np.load(file)
        if isinstance(found, np.lib.npyio.NpzFile):
            found = found["images"]
    except (ValueError, KeyError, EOFError, OSError) as error:
        raise ValueError(f"{file} has no array of images, or is damaged ({error}).") from None
    found = found[..., None] if found.ndim == 3 else found
    if found.ndim != 4 or not (found.dtype == np.uint8 or np.issubdtype(found.dtype, np.floating)):
        raise ValueError(
            f"{file} holds an array of shape {found.shape} and type {found.dtype}; bytes, or numbers from -1 to 1, of "
            "shape (n, height, width, channels) are expected."
        )
    return found
