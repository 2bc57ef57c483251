"""The published sizes of pretrained networks: parameters and FLOPs from shapes, against the authors' figures."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import pytest
from published_sizes import published

from mlem_jax.diffusion._ladder import count_flops, count_parameters


@pytest.mark.slow
def test_parameters_are_the_published_ones_and_so_are_the_flops_of_the_smallest():
    """Parameters of all sizes to the three digits that are published; multiply-adds of DiT-S/8 to 1%."""
    sizes = list(published())
    assert len(sizes) > 20
    for size in sizes:
        assert count_parameters(size.network) / 1e6 == pytest.approx(size.parameters, rel=5e-3), size.name
    (small,) = [size for size in sizes if size.name == "DiT-S/8"]
    assert count_flops(small.network) / 2e9 == pytest.approx(small.multiply_adds, rel=1e-2)
