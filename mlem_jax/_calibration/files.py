"""Records of arrays and settings as one `.npz` file with its kind and version.

Reading ignores unknown fields and uses defaults for missing ones, so that a field can be added to a record without a
new version. The version changes if the meaning of a field changes.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .._coins import AbstractCoins, coins_from_dict
from .._io import read_npz, write_safely
from .._solver import AbstractMethod, method_from_dict

_SETTINGS = "settings"
_Record = TypeVar("_Record")
# Fields that had another name in earlier files.
_RENAMED = {"looks": "evaluated"}
# Fields of records that are objects, by name.
_DECODERS = {"coins": coins_from_dict, "method": method_from_dict}


def write_record(path: str | Path, kind: str, version: int, record: Any) -> None:
    """Writes a dataclass of arrays, JSON values, coin policies, methods and further dataclasses, atomically. Raises
    `OSError` if the disk is full."""
    arrays: dict[str, np.ndarray] = {}
    values = _encode_record(record, "", arrays)
    arrays["header"] = np.array(json.dumps({"kind": kind, "version": version, _SETTINGS: values}))
    content: dict[str, Any] = dict(arrays)
    write_safely(Path(path), lambda file: np.savez_compressed(file, **content))


def read_record(
    path: str | Path, versions: dict[str, int], what: str, remedy: str
) -> tuple[str, dict[str, Any]]:
    """The kind of record in a file and its values, nested as in the record.

    Raises `FileNotFoundError`, or `ValueError` for a damaged file, for a kind that is not in `versions`, and for
    another version than the one in `versions`.
    """
    arrays = read_npz(path, what, remedy)
    try:
        header = json.loads(str(arrays.pop("header")))
        kind, version, values = header["kind"], header["version"], header[_SETTINGS]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not {what}: it holds {sorted(arrays)}. {remedy}") from error
    if kind not in versions:
        raise ValueError(f"{path} is not {what}: it is a {kind}.")
    if version != versions[kind]:
        raise ValueError(
            f"{path} has version {version} of the format and this version of mlem_jax reads {versions[kind]}. {remedy}"
        )
    for name, array in arrays.items():
        *parents, last = name.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[_RENAMED.get(last, last)] = array
    return kind, values


def decode_record(cls: type[_Record], values: dict[str, Any], path: str | Path) -> _Record:
    """The record of a class from the values of `read_record`. Raises `ValueError` if a field is missing."""
    fields: tuple[dataclasses.Field, ...] = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    known = {field.name for field in fields}
    required = {
        f.name
        for f in fields
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(values))
    if missing:
        raise ValueError(f"{path} is damaged: {', '.join(missing)} missing.")
    return cls(**{name: _decode(name, value) for name, value in values.items() if name in known})


def _decode(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return _DECODERS[name](value)
    return tuple(_decode(name, item) for item in value) if isinstance(value, list) else value


def _encode_record(record: Any, prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray):
            arrays[prefix + field.name] = value
        elif isinstance(value, AbstractCoins | AbstractMethod):
            values[field.name] = value.to_dict()
        elif dataclasses.is_dataclass(value):
            values[field.name] = _encode_record(value, f"{prefix}{field.name}.", arrays)
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            values[field.name] = {
                str(i): _encode_record(item, f"{prefix}{field.name}.{i}.", arrays)
                for i, item in enumerate(value)
            }
        else:
            values[field.name] = value
    return values
