"""Every benchmark can be started, and benchmarks/README.md says what it is for. (Smoke runs of studies are in
test_rivals.py, test_studies.py and test_study_commands.py; that of scaling.py is a command of its own, `--smoke`.)"""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_benchmark_explains_itself_and_is_listed(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module(name)
    assert module.__doc__ and f"benchmarks/{name}.py" in module.__doc__
    assert name == "make_colour_set" or f"benchmarks/{name}.py" in (FOLDER / "README.md").read_text()
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    if name not in ("overhead", "allocation"):
        # Those two take no options.
        with pytest.raises(SystemExit, match="0"):
            module.main()
        assert "usage" in capsys.readouterr().out
