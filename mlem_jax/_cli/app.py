"""The application: `demo`, which may be left out, `train`, `calibrate` and `sample`, each in a separate file."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .calibrate import calibrate
from .demo import demo
from .distance import distance
from .distil import distil
from .sample import sample
from .train import train

_OF_THE_GROUP = ("-h", "--help", "--version")


class _DemoByDefault(TyperGroup):
    """Commands, of which `demo` may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in _OF_THE_GROUP):
            args = ["demo", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_DemoByDefault,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(name: str = "mlem-jax") -> None:
    """Runs the command line, which calls itself `name` in its help."""
    app(prog_name=name)


def _tell_version(asked: bool) -> None:
    if asked:
        try:
            print(f"mlem_jax {version('mlem_jax')}")
        except PackageNotFoundError:  # Used from its sources, without being installed.
            from .. import __version__

            print(f"mlem_jax {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Multilevel Euler-Maruyama for JAX: diffusion models sampled with networks of several sizes.

    Without a command, or with options only, this is demo. For the options of a command write its name and --help.
    """


# In the order in which a user meets them.
for command in (demo, train, distil, calibrate, sample, distance):
    app.command()(command)
