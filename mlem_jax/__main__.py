"""`python -m mlem_jax`."""

from ._cli.app import app

app(prog_name="python -m mlem_jax")
