"""Settings of the whole test run: run-time type checks, strict promotion, one CPU device."""

from jaxtyping import install_import_hook

# Before the first import of the package, so that every annotation in it is checked.
with install_import_hook("mlem_jax", "beartype.beartype"):
    import mlem_jax
    import mlem_jax.diffusion  # noqa: F401

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Runs a test in double precision."""
    with jax.enable_x64(True):
        yield
