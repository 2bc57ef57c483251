"""The command line, `mlem-jax` or `python -m mlem_jax`."""

from .._extras import require

require("The command line of mlem_jax", "cli", "typer", "rich", "matplotlib")
