"""A study's command on its smoke setting: it runs from end to end, prints its table, and writes nothing.

(The studies of gamma, guidance and accelerators on theirs: `test_rivals.py` and `test_studies.py`.)
"""

import dataclasses
import sys
from pathlib import Path

import pytest

import mlem_jax as ml

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_fitted_smoke(tmp_path, monkeypatch, capsys):
    """With two entries of the catalogue; test_faces fits one."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import fitted

    steps = ml.FittedSteps.load(FOLDER / "results" / "fitted_steps.npz")
    alone = next(i for i, levels in enumerate(steps.levels) if levels == (3,))
    several = next(i for i, levels in enumerate(steps.levels) if len(levels) > 1 and levels[-1] == 3)
    kept = [alone, several]
    few = dataclasses.replace(
        steps,
        levels=tuple(steps.levels[i] for i in kept),
        coefficients=tuple(steps.coefficients[i] for i in kept),
        errors=steps.errors[kept],
        fitted=tuple(steps.fitted[i] for i in kept),
        distances=steps.distances[kept],
    )
    few.save(tmp_path / "steps.npz")
    monkeypatch.setattr(sys, "argv", ["fitted", "--smoke", "--steps", str(tmp_path / "steps.npz")])
    before = {path: path.stat().st_mtime_ns for path in (FOLDER / "results").iterdir()}
    fitted.main()
    assert {path: path.stat().st_mtime_ns for path in (FOLDER / "results").iterdir()} == before
    printed = capsys.readouterr().out
    for method in (fitted.RIVAL, fitted.ALONE, fitted.SEVERAL, fitted.SECOND):
        assert method in printed
    assert "| at the error of |" in printed and "predicted" in printed


@pytest.mark.slow
def test_particles_smoke(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    import particles

    monkeypatch.setattr(sys, "argv", ["particles", "--smoke"])
    before = {path: path.stat().st_mtime_ns for path in (FOLDER / "results").iterdir()}
    particles.main()
    assert {path: path.stat().st_mtime_ns for path in (FOLDER / "results").iterdir()} == before
    printed = capsys.readouterr().out
    for method in ("Euler, all pairs", "ShARK, all pairs", particles.OURS, particles.INDEPENDENT):
        assert f"| {method} |" in printed
    assert "nan" not in printed
