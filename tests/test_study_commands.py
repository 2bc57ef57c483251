"""A study's command on its smoke setting: it runs from end to end, prints its table, and writes nothing.

(The studies of gamma, guidance and accelerators on theirs: `test_rivals.py` and `test_studies.py`.)
"""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_fitted_smoke(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    import fitted

    monkeypatch.setattr(sys, "argv", ["fitted", "--smoke"])
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
