"""`python -m mlem_jax`."""

from ._cli import app

app(prog_name="python -m mlem_jax")
