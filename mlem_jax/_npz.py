"""Reading what calibrations and plans were saved as."""

import zipfile
import zlib
from pathlib import Path

import numpy as np


def read_npz(path: str | Path, what: str, remedy: str) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file. Raises `FileNotFoundError`, or `ValueError` for a file that is damaged or of
    another kind."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, OSError, KeyError) as error:
        raise ValueError(f"{path} is not {what}, or damaged ({error}). {remedy}") from error
