"""What `train` prints: its data, how large the levels are, and what came of them."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .screen import say


def report_data(console: Console, data: Any) -> None:
    """How many images there are, and which files cannot be read."""
    say(console, f"{len(data.images)} images to train on, {len(data.held_out)} held out.")
    if data.classes is not None:
        say(console, f"Labels: {', '.join(f'{k} {name}' for k, name in enumerate(data.classes))}.")
    if data.skipped:
        shown = "; ".join(data.skipped[:3]) + ("; ..." if len(data.skipped) > 3 else "")
        console.print(
            f"[yellow]{len(data.skipped)} files cannot be read and are left out:[/yellow] ",
            end="",
            highlight=False,
        )
        say(console, shown)


def sizes_table(sizes: list[tuple[str, int, float]]) -> Table:
    """Kind, parameters and FLOPs of each level, before the training."""
    table = Table("level", "network", "parameters", "MFLOP per image", "relative cost")
    for k, (kind, parameters, flops) in enumerate(sizes):
        relative = f"{flops / sizes[-1][2]:.3g}"
        table.add_row(str(k + 1), kind, f"{parameters:,}", f"{flops / 1e6:.2f}", relative)
    return table


def report_ladder(console: Console, ladder: Any, out: Path) -> None:
    """The trained levels, and which command to write next."""
    console.print(results_table(ladder.card))
    say(console, "MFLOP: per image; to finest: mean squared distance to finest level's output.")
    if ladder.calibrations:
        say(console, f"Images: python -m mlem_jax sample --checkpoint {out} --n 64 --out FOLDER")
    elif len(ladder.networks) > 1:
        say(console, f"Next: python -m mlem_jax calibrate --checkpoint {out} --out FILE.npz")
    else:
        say(
            console,
            f"Images: python -m mlem_jax sample --checkpoint {out} --steps 32 --n 64 --out FOLDER; for fitted steps "
            f"first: python -m mlem_jax calibrate --checkpoint {out} --out FILE.npz",
        )
    for place in sorted(out.glob("ladder-ema-*")):
        losses = json.loads((place / "card.json").read_text())["held_out_loss"]["data"]
        shown = ", ".join(f"{loss:.4f}" for loss in losses)
        say(console, f"Averages of another decay, for --checkpoint: {place} (held-out losses {shown})")
    say(console, f"In Python: mlem_jax.diffusion.load_ladder({str(out / 'ladder')!r})")


def results_table(card: dict[str, Any]) -> Table:
    """What was measured of each level, after the training."""
    before = card.get("to_finest_before")
    # Headers that leave room for all columns on 80 places.
    table = Table("level", "parameters", "MFLOP", "held-out loss", "to finest")
    if before is not None:
        table.add_column("before")
    for k, parameters in enumerate(card["parameters"]):
        table.add_row(
            str(k + 1),
            f"{parameters:,}",
            f"{card['flops_per_image'][k] / 1e6:.2f}",
            f"{card['held_out_loss']['data'][k]:.4f}",
            f"{card['held_out_loss']['to_finest'][k]:.4f}",
            *(() if before is None else (f"{before[k]:.4f}",)),
        )
    return table
