"""The command line, `mlem-jax` or `python -m mlem_jax`."""

import sys

from .._extras import require

try:
    require(
        "The command line of mlem_jax",
        "all",
        "typer",
        "rich",
        "matplotlib",
        "ml_dtypes",
        "optax",
        "orbax",
        "PIL",
        "safetensors",
        "tomli_w",
    )
except ModuleNotFoundError as error:
    # Nobody imports this package but the two ways to start it, whose users want no traceback.
    sys.exit(str(error))
