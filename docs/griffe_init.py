"""Shows the signature of classes that write `__init__ = Base.__init__`, as equinox asks of final classes."""

from typing import Any

import griffe


class AssignedInit(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for module in _modules(pkg):
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
