"""Short texts that identify levels, plans and arguments, and are the same in every process.

`level_id` identifies the levels of a calibration, `fingerprint` the arguments of a folder of samples. Both depend on
types, settings, numbers and random keys, and on functions: their code and the values that they capture. `fingerprint`
also depends on shapes, dtypes and the code of the user's classes.
"""

import dataclasses
import functools
import hashlib
import re
import sys
import sysconfig
import types
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

_PACKAGE = str(Path(__file__).parent)
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def level_id(level: Any) -> str:
    """A short text that differs between levels of different type, settings, numbers or captured values."""
    code = 0
    for part in _Walk(thorough=False).parts(level):
        code = zlib.crc32(part, code)
    name = getattr(level, "__qualname__", type(level).__qualname__)
    return f"{name}-{code:08x}"


def fingerprint(tree: PyTree) -> str:
    """A short text that differs between PyTrees of different structure, types, settings, numbers or code.

    Raises `TypeError` for an object whose content cannot be read, such as one of compiled code.
    """
    code = hashlib.sha256()
    for part in _Walk(thorough=True).parts(tree):
        code.update(len(part).to_bytes(8, "little") + part)
    return code.hexdigest()[:16]


def state_id(y0: PyTree) -> str:
    """The structure and shapes of a state."""
    shapes = [list(np.shape(leaf)) for leaf in jax.tree.leaves(y0)]
    return f"{jax.tree.structure(y0)} {shapes}"


class _Walk:
    """A walk through an object that yields the parts that identify it.

    Static fields of equinox modules that have their default or are `None` are skipped, so that calibrations remain
    valid if a later version adds a field to a module.
    """

    def __init__(self, *, thorough: bool):
        self.thorough = thorough
        # Objects may contain themselves.
        self._open: set[int] = set()

    def parts(self, node: Any) -> Iterator[bytes]:
        """Types, settings and numbers, one by one."""
        if id(node) in self._open:
            yield b"again"
            return
        self._open.add(id(node))
        try:
            yield from self._parts(node)
        finally:
            self._open.remove(id(node))

    def _parts(self, node: Any) -> Iterator[bytes]:
        if eqx.is_array_like(node):
            yield from self._array(node)
        elif isinstance(node, eqx.Module):
            yield from self._module(node)
        elif isinstance(node, type):
            yield from self._class(node)
        elif isinstance(node, types.CodeType):
            yield from self._code(node)
        elif _is_function(node):
            yield _text(node).encode()
            yield from self._inside(node)
        elif isinstance(node, types.ModuleType):
            yield node.__name__.encode()
        elif node is not None and jtu.all_leaves([node]):
            yield from self._object(node)
        else:
            yield from self._container(node)

    def _array(self, node: Any) -> Iterator[bytes]:
        if hasattr(node, "__jax_array__"):  # A variable of another library, such as one of Flax NNX.
            node = node.__jax_array__()
        if isinstance(node, jax.Array) and jnp.issubdtype(node.dtype, jax.dtypes.prng_key):
            yield str(jr.key_impl(node)).encode()
            node = jr.key_data(node)
        array = np.asarray(node)
        if self.thorough:
            yield f"{array.dtype}{array.shape}".encode()
        yield array.tobytes()

    def _module(self, node: eqx.Module) -> Iterator[bytes]:
        yield from self._class(type(node))
        for field in dataclasses.fields(node):
            # A field may be left out by a module with an `__init__` of its own.
            value = getattr(node, field.name, None)
            if not field.metadata.get("static", False):
                if self.thorough:
                    yield field.name.encode()
                yield from self.parts(value)
            elif value is not None and _text(value) != _text(field.default):
                yield f"{field.name}={_text(value)}".encode()
                if callable(value):
                    yield from self._inside(value)

    def _class(self, node: type) -> Iterator[bytes]:
        yield node.__qualname__.encode()
        if self.thorough:
            for base in node.__mro__:
                if not _is_installed(getattr(base, "__module__", "")):
                    for name, value in vars(base).items():
                        if isinstance(value, types.FunctionType | property | staticmethod | classmethod):
                            yield name.encode()
                            yield from self._inside(value)

    def _inside(self, node: Any) -> Iterator[bytes]:
        """The code of a function and the values that it captures. The code of an installed package is identified by its
        name."""
        if isinstance(node, functools.partial):
            yield from self.parts((node.func, node.args, node.keywords))
        elif isinstance(node, types.MethodType):
            yield from self.parts(node.__self__)
            yield from self.parts(node.__func__)
        elif isinstance(node, property):
            yield from self.parts(node.fget)
        elif isinstance(node, types.FunctionType):
            for cell in node.__closure__ or ():
                yield from self._cell(cell)
            if not _is_installed(node.__module__):
                yield from self.parts(node.__code__)
                yield from self.parts((node.__defaults__, node.__kwdefaults__))
                yield from self._globals(node)
        elif hasattr(node, "__wrapped__"):
            yield from self._inside(node.__wrapped__)

    def _cell(self, cell: types.CellType) -> Iterator[bytes]:
        try:
            content = cell.cell_contents
        except ValueError:  # A name that is not bound yet.
            return
        yield from self.parts(content)

    def _globals(self, node: types.FunctionType) -> Iterator[bytes]:
        for name in sorted(_names(node.__code__)):
            if name in node.__globals__:
                yield name.encode()
                yield from self.parts(node.__globals__[name])

    def _code(self, node: types.CodeType) -> Iterator[bytes]:
        yield node.co_code
        yield " ".join(node.co_names).encode()
        for constant in node.co_consts:
            if isinstance(constant, types.CodeType):
                yield from self.parts(constant)
            else:
                yield repr(constant).encode()

    def _object(self, node: Any) -> Iterator[bytes]:
        text = repr(node)
        if not self.thorough and not _ADDRESS.search(text):
            yield text.encode()
            return
        yield from self._class(type(node))
        fields = _fields(node)
        if fields is not None:
            yield from self.parts(fields)
        elif not _ADDRESS.search(text):
            yield text.encode()
        elif self.thorough and type(node) is not object:  # That is a sentinel, such as those of JAX.
            kind = f"{type(node).__module__}.{type(node).__qualname__}"
            raise TypeError(f"An object of type {kind} has no content that can be compared.")

    def _container(self, node: Any) -> Iterator[bytes]:
        if self.thorough:
            yield type(node).__qualname__.encode()
            yield str(jtu.tree_structure(node, is_leaf=lambda x: x is not node)).encode()
        for child in jtu.tree_leaves(node, is_leaf=lambda x: x is not node):
            yield from self.parts(child)


def _text(value: Any) -> str:
    """The printed form of a setting without the addresses of objects, which differ between runs."""
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    return _ADDRESS.sub("", repr(value))


def _is_installed(module: str) -> bool:
    """Whether a module belongs to mlem_jax, Python or an installed package, whose objects are identified by their
    names."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return module in sys.builtin_module_names or module == "builtins"
    return file.startswith((_PACKAGE, *_INSTALLED))


def _names(code: types.CodeType) -> set[str]:
    """The global names that a function and its inner functions use."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*inner)


def _is_function(node: Any) -> bool:
    named = callable(node) and hasattr(node, "__qualname__")
    return named or isinstance(node, functools.partial | property | staticmethod | classmethod | np.ufunc)


def _fields(node: Any) -> dict[str, Any] | None:
    if dataclasses.is_dataclass(node):
        return {field.name: getattr(node, field.name, None) for field in dataclasses.fields(node)}
    slots = [name for kind in type(node).__mro__ for name in getattr(kind, "__slots__", ())]
    names = sorted({*getattr(node, "__dict__", {}), *slots} - {"__dict__", "__weakref__"}, key=str)
    if names or hasattr(node, "__dict__"):
        return {str(name): getattr(node, str(name), None) for name in names}
    return None
