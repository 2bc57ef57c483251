"""Reading checkpoints: named arrays from `.safetensors` and `.npz` files, and the JSON files beside them.

Nothing that a file says is ever executed. A pickle, as `torch.save` writes it, is a program; it is recognised and
refused.
"""

import abc
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors asks it for
import numpy as np
from safetensors import safe_open, SafetensorError

from ..._io import read_npz

_READABLE = (".safetensors", ".npz")
_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
# Where diffusers' `save_pretrained` puts the weights of one model.
_DIFFUSERS = "diffusion_pytorch_model"
# How many names a message lists before it only counts.
_SHOWN = 5


class _AbstractFile(abc.ABC):
    """One file; `shapes` of its arrays by name."""

    shapes: dict[str, tuple[int, ...]]

    @abc.abstractmethod
    def read(self, name: str) -> np.ndarray: ...


class _Npz(_AbstractFile):
    """Reads all arrays: a compressed file has to be read as a whole."""

    def __init__(self, path: Path):
        self._arrays = read_npz(path, "an .npz file of arrays", "Save it again with numpy.savez.")
        self.shapes = {name: array.shape for name, array in self._arrays.items()}

    def read(self, name: str) -> np.ndarray:
        return self._arrays[name]


class _Safetensors(_AbstractFile):
    """Read one array at a time, without a copy of the whole in memory."""

    def __init__(self, path: Path):
        self._path = path
        try:
            with safe_open(path, framework="numpy") as file:
                names = file.keys()
                self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        except SafetensorError as error:
            raise ValueError(
                f"{path} is not a .safetensors file, or is truncated ({error}). Copy or download it again."
            ) from None

    def read(self, name: str) -> np.ndarray:
        with safe_open(self._path, framework="numpy") as file:
            try:
                return file.get_tensor(name)
            except (AttributeError, KeyError, TypeError, SafetensorError) as error:
                raise ValueError(
                    f"{self._path}: {name} has a type that cannot be read here ({error}). Save it as float32, "
                    "float16 or bfloat16."
                ) from None


class Checkpoint:
    """The arrays of one file or several, by name; each is read when it is asked for.

    **Arguments:** `path`, a file, or a folder that holds the weights of one network.

    Raises `FileNotFoundError` if nothing is there; `ValueError` for a pickle, a file that is damaged or of another
    kind, or a folder with several checkpoints.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        files = [_open(file) for file in _weight_files(self.path)]
        self._where = {name: (file, name) for file in files for name in file.shapes}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every array."""
        return {name: file.shapes[stored] for name, (file, stored) in self._where.items()}

    def rename(self, names: Mapping[str, str | None]) -> None:
        """Gives arrays other names, or with `None` forgets them."""
        renamed = {names.get(name, name): place for name, place in self._where.items()}
        self._where = {name: place for name, place in renamed.items() if name is not None}

    def read(self, name: str) -> np.ndarray:
        """The array as it is in the file. Raises `ValueError` unless it is of a floating-point type."""
        file, stored = self._where[name]
        array = file.read(stored)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"{self.path}: {stored} has the type {array.dtype}; floating-point numbers are expected. If the "
                "weights are quantised, save them as float32, float16 or bfloat16 first."
            )
        return array

    def check(self, required: Mapping[str, tuple[int, ...]], network: str) -> None:
        """Raises one `ValueError` that names the arrays that are missing, have another shape than `required`, or
        are not known."""
        there = self.shapes
        faults = []
        missing = [name for name in required if name not in there]
        if missing:
            faults.append(f"lacks {_listed(missing)}")
        unknown = sorted(set(there) - set(required))
        if unknown:
            faults.append(f"has {_listed(unknown)}, which it does not know")
        resized = [
            f"{name} of shape {there[name]} instead of {shape}"
            for name, shape in required.items()
            if name in there and there[name] != shape
        ]
        if resized:
            faults.append(f"has {_listed(resized)}")
        if faults:
            raise ValueError(
                f"{self.path} does not fit the {network} that it should hold: it {', '.join(faults)}. It is another "
                "architecture, or its configuration belongs to another file."
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `FileNotFoundError`, or `ValueError` for something else."""
    try:
        table = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file, or damaged ({error}).") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds a {type(table).__name__}; a JSON object is expected.")
    return table


def _open(path: Path) -> _AbstractFile:
    with open(path, "rb") as file:
        start = file.read(2)
    # What is inside decides, not the name: a pickle may have any.
    if start == b"PK":
        try:
            with zipfile.ZipFile(path) as archive:
                pickled = any(name.endswith(".pkl") for name in archive.namelist())
        except zipfile.BadZipFile:
            pickled = False
        if not pickled and path.suffix == ".npz":
            return _Npz(path)
        if pickled:
            raise ValueError(_refusal(path))
    elif start[:1] == b"\x80" and start[1:2] in b"\x00\x01\x02\x03\x04\x05" and path.suffix != ".safetensors":
        raise ValueError(_refusal(path))
    if path.suffix in _PICKLES:
        raise ValueError(_refusal(path))
    if path.suffix not in _READABLE:
        raise ValueError(
            f"{path} is not a checkpoint that can be read: {' or '.join(_READABLE)} is expected."
        )
    return _Npz(path) if path.suffix == ".npz" else _Safetensors(path)


def _refusal(path: Path) -> str:
    target = path.with_suffix(".safetensors").name
    return (
        f"{path} is a pickle, which runs code when it is opened, so it is not read. Convert it where PyTorch is "
        f"installed: weights = torch.load({path.name!r}, map_location='cpu', weights_only=True), then "
        f"safetensors.torch.save_file(weights, {target!r}) with the dictionary of its tensors."
    )


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; the file or folder of a checkpoint is expected.")
    whole = path / f"{_DIFFUSERS}.safetensors"
    if whole.is_file():
        return [whole]
    parts = sorted(path.glob(f"{_DIFFUSERS}-*-of-*.safetensors"))
    if parts:
        return parts
    found = sorted(file for file in path.iterdir() if file.suffix in _READABLE)
    if len(found) == 1:
        return found
    if found:
        raise ValueError(
            f"{path} holds several checkpoints: {_listed([f.name for f in found])}. Name one of these files."
        )
    pickles = sorted(file for file in path.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise ValueError(_refusal(pickles[0]))
    raise FileNotFoundError(f"{path} holds no weights: a .safetensors or .npz file is expected in it.")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
