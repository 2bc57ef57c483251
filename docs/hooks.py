"""What mkdocs makes besides the pages of this folder: notebooks as pages, the command-line reference, and links to
the documentation of the libraries that docstrings cite."""

from pathlib import Path
from typing import Any

import click
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

from mlem_jax._cli.app import app

ROOT = Path(__file__).parents[1]

_DIFFRAX = "https://docs.kidger.site/diffrax/api"
# Written down here rather than read from inventories, so that the site is built without a network.
EXTERNAL = {
    "diffrax.AbstractBrownianPath.evaluate": f"{_DIFFRAX}/brownian/#diffrax.AbstractBrownianPath.evaluate",
    "diffrax.AbstractSolver.step": f"{_DIFFRAX}/solvers/abstract_solvers/#diffrax.AbstractSolver.step",
    "diffrax.Euler": f"{_DIFFRAX}/solvers/ode_solvers/#diffrax.Euler",
    "diffrax.UnsafeBrownianPath": f"{_DIFFRAX}/brownian/#diffrax.UnsafeBrownianPath",
    "matplotlib.figure.Figure": "https://matplotlib.org/stable/api/figure_api.html#matplotlib.figure.Figure",
}


@event_priority(100)  # before the plugin that makes pages of notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"examples/{path.name}", content=path.read_text()))
    files.append(File.generated(config, "command-line.md", content=command_line()))
    return files


@event_priority(100)  # before references are resolved
def on_env(env: Any, config: MkDocsConfig, files: Files) -> None:
    for name, url in EXTERNAL.items():
        config.plugins["autorefs"].register_url(name, url)


def command_line() -> str:
    """The reference of all commands, from the application itself."""
    group = typer.main.get_command(app)
    context = click.Context(group, info_name="mlem-jax")
    lines = ["# Command line", "", *_about(group), ""]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = click.Context(command, info_name=name, parent=context)
        lines += [f"## mlem-jax {name}", "", *_about(command), "", *_options(command, inner), ""]
    return "\n".join(lines)


def _about(command: click.Command) -> list[str]:
    return (command.help or "").replace("\b", "").splitlines()


def _options(command: click.Command, context: click.Context) -> list[str]:
    rows = ["| option | meaning | default |", "|---|---|---|"]
    for option in command.get_params(context):
        if getattr(option, "hidden", False) or option.name == "help":
            continue
        names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
        value = option.metavar if not getattr(option, "is_flag", False) else None
        default = "required" if option.required else option.default
        shown = "" if default is None or default is False or callable(default) else f"`{default}`"
        text = (getattr(option, "help", None) or "").replace("|", "\\|").replace("\n", " ")
        shown = "required" if option.required else shown
        rows.append(f"| {names}{f' `{value}`' if value else ''} | {text} | {shown} |")
    return rows
