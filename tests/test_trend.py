"""Study 11 (benchmarks/trend.py): gains as they are read from the results of other studies."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import trend
from _fitted_methods import ALONE_FITTED, SEVERAL_FITTED
from _quality_methods import SEVERAL_LAW


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


def test_seconds_of_an_accelerator_are_evaluations_times_what_one_takes():
    """Ten evaluations of a tenth of a millisecond and two of one are three; the finest level alone takes four at the
    same error. Batches without the time of a level are left out, one whose level is never evaluated is not needed."""

    def row(method, steps, evaluations):
        named = {"method": method, "setting": "", "steps": steps, "evaluations": evaluations}
        return {**named, "error": 0.1, "batch_error": [0.1, 0.1]}

    def time(batch, level, milliseconds):
        return {"precision": "float32", "batch": batch, "level": level, "milliseconds": milliseconds}

    rows = [row(ALONE_FITTED, 4, [0, 0, 4]), row(SEVERAL_FITTED, 10, [10, 0, 2]), row("Euler", 3, None)]
    times = [time(8, 1, 0.1), time(8, 3, 1.0), time(16, 3, 1.0)]
    found = trend.on_an_accelerator(trend.Case("own", 500.0, {"rows": rows}, {}), times)
    assert list(found) == ["8"]
    (line,) = found["8"]
    assert line["rival_cost"] == pytest.approx(4e-3) and line["cost"]["median"] == pytest.approx(3e-3)
    assert line["times_fewer"]["median"] == pytest.approx(4 / 3)


def test_seconds_of_study_8_weigh_the_distributions_of_study_9():
    """Steps with half the excess of the rival take 0.1 s, with twice its excess 0.025 s: at its excess 0.05 s, on
    logarithmic axes, and the rival takes 0.2 s. Steps that were not timed do not count."""

    def timed(method, steps, setting, seconds):
        return {"method": method, "steps": steps, "setting": setting, "seconds": seconds}

    def judged(setting, excess):
        return {"method": SEVERAL_LAW, "setting": setting, "sliced_to_same_excess": excess}

    fitted = {
        "rows": [
            timed(ALONE_FITTED, 4, "4 steps", 0.2),
            timed(SEVERAL_FITTED, 8, "cheap", 0.025),
            timed(SEVERAL_FITTED, 9, "dear", 0.1),
        ],
        "compared_seconds": [_compared(0.2, 1.3), _compared(0.2, 9.0, method="MLAB2, planned")],
    }
    quality = {
        "rows": [
            judged("cheap", 2.0),
            judged("dear", 0.5),
            judged("not timed", 0.1),
            {**judged("cheap", 0.1), "method": "finest alone, fitted for the path"},
        ],
        "equal_quality": [
            {**_quality(4, 1.6), "excess": 1.0},
            {**_quality(4, 1.6, target="real"), "excess": 1.0},
        ],
    }
    rows = trend.in_seconds(trend.Case("own", 500.0, fitted, quality))
    gains = [(row["rival"], row["measure"], row["gain"]) for row in rows]
    assert gains == [(4, "error", 1.3), (4, "sliced", pytest.approx(4))]
    assert "| own | 500 | 4 | 1.30 | - | - | 4.00 |" in trend.report(rows)
