"""What griffe, which reads the sources for the reference, does not find by itself: the signature of classes that write
`__init__ = Base.__init__`, as equinox asks of final classes, and functions named like the module that defines them."""

from typing import Any

import griffe


class Resolved(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for module in _modules(pkg):
            for name, found in list(module.members.items()):
                if found.is_alias:
                    _skip_module(module, name, found.target_path)
            for found in module.classes.values():
                if not found.is_alias:
                    _resolve(found)


def _modules(module: griffe.Module) -> list[griffe.Module]:
    inner = [child for child in module.modules.values() if not child.is_alias]
    return [module, *(each for child in inner for each in _modules(child))]


def _resolve(found: griffe.Class) -> None:
    init = found.members.get("__init__")
    if not isinstance(init, griffe.Attribute) or init.value is None:
        return
    base = found.modules_collection[found.resolve(str(init.value).removesuffix(".__init__"))]
    function = base.members["__init__"]
    copy = griffe.Function(
        "__init__", parameters=function.parameters, returns=function.returns, docstring=function.docstring
    )
    found.set_member("__init__", copy)


def _skip_module(module: griffe.Module, name: str, target: str) -> None:
    """`from ._room import function` means the function, where the room has a module of the same name."""
    try:
        found = module.modules_collection[target]
        if found.is_module and name in found.members:
            module.set_member(name, griffe.Alias(name, f"{target}.{name}", parent=module))
    except KeyError:  # Of another package.
        pass
