"""Optional dependencies, and the error for a missing one."""

import importlib.util


def require(what: str, extra: str, *modules: str) -> None:
    """Raises `ModuleNotFoundError`, with the command that installs the extra, if a module that `what` needs is
    missing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{what} needs {', '.join(missing)}, which mlem_jax alone does not install. "
            f"Write: pip install 'mlem_jax[{extra}]'",
            name=missing[0],
        )
