"""Study 11 (benchmarks/trend.py): gains as they are read from the results of other studies."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import trend


def _compared(cost, median, method="several levels, fitted", rival="finest alone, fitted, 4 steps"):
    factors = {"median": median, "min": median and 1.4, "max": median and 1.9}
    return {"rival": rival, "rival_cost": cost, "method": method, "times_fewer": factors}


def _quality(single, cost, target="same", method="several levels, fitted for the distribution"):
    return {"single": single, "target": target, "measure": "sliced", "method": method, "cost": cost}


def test_gains_of_a_ladder():
    """Errors: what study 8 says of the same rival and of several levels. Distributions: evaluations of the rival over
    those of several levels. Not reached, which study 8 writes as 0, is no gain."""
    fitted = [
        _compared(4.0, 5.0, rival="DPM-Solver++(2M), 4 steps"),
        _compared(4.0, 6.0, method="MLAB2, planned"),
        _compared(4.0, 1.7),
        _compared(6.0, 0.0),
    ]
    quality = [_quality(4, 1.6), _quality(4, 0.1, target="real"), _quality(5, 0.2), _quality(6, None)]
    case = trend.Case("own", 500.0, {"compared": fitted}, {"equal_quality": quality})
    rows = trend.gains(case)
    found = {(row["rival"], row["measure"]): (row["least"], row["gain"], row["most"]) for row in rows}
    assert found == {
        (4, "error"): (1.4, 1.7, 1.9),
        (6, "error"): (None, None, None),
        (4, "sliced"): (pytest.approx(2.5), pytest.approx(2.5), pytest.approx(2.5)),
        (6, "sliced"): (None, None, None),
    }
    table = trend.report(rows)
    assert "| own | 500 | 4 | 1.70 | - | - | 2.50 |" in table
    assert "| own | 500 | 6 | not reached | - | - | not reached |" in table
    assert len(trend.draw(rows).axes) == 2


def test_a_study_that_has_not_been_run_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(trend, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["trend.py"])
    with pytest.raises(SystemExit, match="fitted.json is missing: run its study first"):
        trend.main()
