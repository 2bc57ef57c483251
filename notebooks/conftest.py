"""Executing a notebook takes up to a minute: these tests are slow ones."""

from pathlib import Path

import pytest
from compiler_flags import FLAGS


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Kernels take the flags from the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", FLAGS)
        return (yield)
