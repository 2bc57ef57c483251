"""Settings of the whole test run: run-time type checks, strict promotion, one CPU device."""

import ctypes
import gc

from jaxtyping import install_import_hook

# Before the first import of the package, so that every annotation in it is checked.
with install_import_hook("mlem_jax", "beartype.beartype"):
    import mlem_jax
    import mlem_jax.diffusion  # noqa: F401

import jax
import pytest
from compiler_flags import FLAGS

# Set in this process, where flags are read when the first device is asked for, and below in the programs that tests
# start.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XLA_FLAGS", FLAGS)
    jax.devices()

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def same_flags_in_other_processes(monkeypatch):
    """Without them numbers would differ in the last digits."""
    monkeypatch.setenv("XLA_FLAGS", FLAGS)


@pytest.fixture(autouse=True, scope="module")
def caches_of_one_file_only():
    """Compiled functions are shared within a file; kept over all files they would take gigabytes. The C library keeps
    what is freed unless it is told to return it to the system."""
    yield
    jax.clear_caches()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@pytest.fixture
def x64():
    """Runs a test in double precision."""
    with jax.enable_x64(True):
        yield
