"""`python -m mlem_jax`."""

from ._cli.app import main

main("python -m mlem_jax")
