"""What a calibration belongs to: short texts that tell levels and states apart, the same in every process."""

import dataclasses
import re
import zlib
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree


def level_id(level: Any) -> str:
    """A short text that differs between levels of different type, settings or numbers."""
    code = 0
    for part in _parts(level):
        code = zlib.crc32(part, code)
    name = getattr(level, "__qualname__", type(level).__qualname__)
    return f"{name}-{code:08x}"


def _parts(node: Any) -> Iterator[bytes]:
    """The types, settings and numbers inside a level, the same in every process and on every machine.

    Settings are the static fields of equinox modules. One that has its default or is `None` says nothing,
    so that a field added to a module in a later version leaves the calibrations of older ones valid.
    """
    if eqx.is_array_like(node):
        yield np.asarray(node).tobytes()
    elif isinstance(node, eqx.Module):
        yield type(node).__qualname__.encode()
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if not field.metadata.get("static", False):
                yield from _parts(value)
            elif value is not None and _text(value) != _text(field.default):
                yield f"{field.name}={_text(value)}".encode()
    elif jtu.all_leaves([node]):
        yield _text(node).encode()
    else:
        for child in jtu.tree_leaves(node, is_leaf=lambda x: x is not node):
            yield from _parts(child)


def _text(value: Any) -> str:
    """What a setting prints as, but for the addresses of objects, which differ from run to run."""
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def state_id(y0: PyTree) -> str:
    """The structure and shapes of a state."""
    shapes = [list(np.shape(leaf)) for leaf in jax.tree.leaves(y0)]
    return f"{jax.tree.structure(y0)} {shapes}"
