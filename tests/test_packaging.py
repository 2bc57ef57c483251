"""What an installation without extras brings is enough for `import mlem_jax`, and a missing extra is named."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Distributions whose modules are called otherwise.
MODULES = {"orbax-checkpoint": "orbax", "pillow": "PIL", "tomli-w": "tomli_w"}


def modules_of(requirements):
    """The modules that requirements bring, those of this package's own extras with them."""
    found = set()
    for requirement in requirements:
        name, extras = re.match(r"([\w-]+)(?:\[(.*)\])?", requirement).groups()
        if name == PROJECT["name"]:
            for extra in extras.split(","):
                found |= modules_of(PROJECT["optional-dependencies"][extra])
        else:
            found.add(MODULES.get(name, name))
    return found


CORE = modules_of(PROJECT["dependencies"])


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_importing_the_package_loads_its_core_dependencies_only():
    assert CORE == {"diffrax", "equinox", "jax", "jaxlib", "jaxtyping", "lineax", "numpy"}
    result = run(
        f"""
import sys
import {", ".join(sorted(CORE))}
def loaded():
    return {{name.partition(".")[0] for name in sys.modules}}
before = loaded()
import mlem_jax
print(*sorted(loaded() - before - set(sys.stdlib_module_names)))
import mlem_jax._cli.app
print(*{{"mlem_jax.diffusion", "matplotlib", "optax", "orbax", "PIL"}} & set(sys.modules), "late")
"""
    )
    # The command line, too, imports what is large where it is used, so that --help does not wait for it.
    assert result.stdout.splitlines() == ["mlem_jax", "late"], result.stdout + result.stderr


def imported(path):
    """Third-party modules that a file imports anywhere, functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        yield from (name.partition(".")[0] for name in names)


@pytest.mark.parametrize(("folder", "extras"), [("diffusion", "diffusion,tensorboard"), ("_cli", "cli")])
def test_extras_bring_what_their_folder_imports(folder, extras):
    wanted = {name for path in (ROOT / "mlem_jax" / folder).rglob("*.py") for name in imported(path)}
    brought = CORE | modules_of([f"mlem_jax[{extras}]"])
    assert wanted - set(sys.stdlib_module_names) <= brought


def test_a_missing_extra_is_named():
    result = run(
        """
import importlib, importlib.util
find = importlib.util.find_spec
for module, missing in ("plot", "matplotlib"), ("diffusion", "safetensors"), ("_cli.app", "typer"):
    importlib.util.find_spec = lambda name, *rest: None if name == missing else find(name, *rest)
    try:
        importlib.import_module(f"mlem_jax.{module}")
    except ModuleNotFoundError as error:
        print(error)
    except SystemExit as error:  # the command line's users get a sentence, not a traceback
        print(error)
"""
    )
    said = result.stdout.splitlines()
    assert len(said) == 3, result.stderr
    for line, (extra, missing) in zip(
        said, (("plot", "matplotlib"), ("diffusion", "safetensors"), ("all", "typer")), strict=True
    ):
        assert f"needs {missing}," in line and line.endswith(f"pip install 'mlem_jax[{extra}]'")


@pytest.mark.parametrize(
    ("file", "extra"),
    [("plot.py", "plot"), ("diffusion/__init__.py", "diffusion"), ("_cli/__init__.py", "all")],
)
def test_all_that_an_extra_brings_is_asked_for(file, extra):
    calls = (
        node
        for node in ast.walk(ast.parse((ROOT / "mlem_jax" / file).read_text()))
        if isinstance(node, ast.Call)
    )
    (arguments,) = (call.args for call in calls if getattr(call.func, "id", "") == "require")
    said = [argument.value for argument in arguments if isinstance(argument, ast.Constant)]
    assert said[1] == extra
    assert set(said[2:]) == modules_of(PROJECT["optional-dependencies"][extra])


def test_the_console_script_is_the_command_line(monkeypatch, capsys):
    module, function = PROJECT["scripts"]["mlem-jax"].split(":")
    monkeypatch.setattr(sys, "argv", ["mlem-jax", "--help"])
    with pytest.raises(SystemExit, match="0"):
        getattr(importlib.import_module(module), function)()
    assert "mlem-jax [OPTIONS] COMMAND" in re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)


def test_types_are_marked():
    assert (ROOT / "mlem_jax" / "py.typed").exists()
