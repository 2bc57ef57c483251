"""The command line: the main job without a subcommand, which is also `demo`; the others are added."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax.random as jr
import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from .. import plot
from .._io import write_text_safely
from ..diffusion import load_ladder
from . import sample, train
from .demo import compare, Comparison

_BUDGET = 12.0


class _DemoByDefault(TyperGroup):
    """Commands, of which `demo` may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = ["demo", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_DemoByDefault,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def main(name: str = "mlem-jax") -> None:
    """Runs the command line, which calls itself `name` in its help."""
    app(prog_name=name)


@app.callback()
def _about() -> None:
    """Multilevel Euler-Maruyama for JAX: diffusion models sampled with networks of several sizes.

    Without a command, or with options only, this is demo. For a command's options: python -m mlem_jax COMMAND --help
    """


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for samples.png and coins.png.")] = Path(
        "mlem_jax_out"
    ),
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write all numbers to this JSON file.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the noise and of the coins.")] = 0,
    samples: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many images, drawn as one batch.")
    ] = 16,
    budget: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="X",
            help="What ML-EM may spend, in evaluations of the finest network; 12 by default.",
        ),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            "--error", min=0.0, metavar="X", help="Instead of a budget, the error that ML-EM should reach."
        ),
    ] = None,
    sde: Annotated[
        bool, typer.Option("--sde", help="Sample the reverse SDE instead of the probability flow.")
    ] = False,
    in_seconds: sample.InSeconds = False,
) -> None:
    """Draws images with the four shipped networks by ML-EM, beside Euler on the largest network alone, from the
    same noise, and compares error, evaluations and seconds. About 45 seconds on two cores.
    """
    console = Console()
    _check_writable(out, "--out")
    if json_file is not None:
        _check_writable(json_file.parent, "--json")
    ladder = load_ladder()
    if budget is not None and target is not None:
        raise typer.BadParameter("Give --budget or --error, not both.")
    if target is None and budget is None:
        budget = _BUDGET
    kind = "reverse SDE (one Brownian path)" if sde else "probability flow"
    console.print(
        f"{samples} images of {ladder.config.name}, {kind}, seed {seed}, "
        + (f"budget {budget:g}" if target is None else f"error {target:g}")
    )
    try:
        with console.status("loading") as status:
            comparison = compare(
                ladder,
                seed=seed,
                samples=samples,
                budget=budget,
                error=target,
                sde=sde,
                in_seconds=in_seconds,
                tell=lambda method: status.update(f"{method} (compiling, then drawing)"),
            )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    console.print(f"\nThe plan, from the shipped calibration:\n{comparison.plan}\n", highlight=False)
    console.print(_table(comparison))
    console.print(
        "error: RMS over all pixels (range -1 to 1) of the distance to a fine solution of the finest network; "
        "median: of the images' own errors; evals: cost in evaluations of the finest network (FLOPs); seconds "
        "without compilation; ±: standard deviation over coin seeds.",
        highlight=False,
    )
    for what, found in (("error", comparison.speedup), ("median error", comparison.median_speedup)):
        console.print(
            f"For the {what} of ML-EM with default coins, Euler on the finest network needs "
            f"{found['finest_evaluations']:.1f} times the evaluations and {found['seconds']:.1f} times the "
            "seconds."
        )
    _write(console, lambda: _draw(comparison, out))
    console.print(f"Pictures: {out / 'samples.png'}, {out / 'coins.png'}")
    if json_file is not None:
        content = {
            "rows": [vars(row) for row in comparison.rows],
            "speedup": comparison.speedup,
            "median_speedup": comparison.median_speedup,
        }
        _write(console, lambda: write_text_safely(json_file, json.dumps(content, indent=2) + "\n"))
        console.print(f"Numbers: {json_file}")


app.command()(train.train)
app.command()(sample.sample)
app.command()(sample.calibrate)


def _check_writable(folder: Path, option: str) -> None:
    """Fails before the long work rather than after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise typer.BadParameter(f"Cannot write to {folder}: {error}. Choose another {option}.") from error


def _write(console: Console, write: Callable[[], object]) -> None:
    """What fails now, such as a disk that has become full, is said below the numbers, which are out."""
    try:
        write()
    except OSError as error:
        console.print(f"[red]Stopped:[/red] {error}", highlight=False)
        raise typer.Exit(1) from error


def _by_method(comparison: Comparison) -> dict[str, list]:
    methods: dict[str, list] = {}
    for row in comparison.rows:
        methods.setdefault(row.method, []).append(row)
    return methods


def _spread(values: list[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def _table(comparison: Comparison) -> Table:
    # Narrow enough for 80 columns.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("method", no_wrap=True)
    for name in ("error", "predicted", "median", "evals", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for method, rows in _by_method(comparison).items():
        predicted = rows[0].predicted
        table.add_row(
            method.removesuffix(" coins"),
            _spread([row.error for row in rows], 3),
            "-" if predicted is None else f"{predicted:.3f}",
            f"{np.mean([row.median_error for row in rows]):.3f}",
            _spread([row.finest_evaluations for row in rows], 1),
            f"{np.mean([row.seconds for row in rows]):.2f}",
        )
    return table


def _draw(comparison: Comparison, out: Path) -> None:
    strips = []
    for method, images in comparison.images.items():
        rows = _by_method(comparison).get(method)
        label = method
        if rows:
            label += f": {rows[0].finest_evaluations:.0f} finest evaluations, error {rows[0].error:.3f}"
        strips.append((label, images))
    plot.save_figure(plot.samples(strips), out / "samples.png")
    panels = [
        (f"{method}: {report.finest_evaluations:.1f} finest evaluations", report)
        for method, report in comparison.reports.items()
    ]
    label = "s = sigma / alpha (sampling goes from right to left)"
    if panels:
        levels = list(comparison.levels.values())
        figure = plot.firings(panels, levels=levels, time_label=label, log_time=True)
    else:
        figure = plot.plan_raster(comparison.plan, key=jr.key(0), time_label=label, log_time=True)
    plot.save_figure(figure, out / "coins.png")
