"""The main job and the commands, on a tiny untrained ladder; and the pictures."""

import dataclasses
import io
import json
import os
import re

import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import catalogue, randomised, TINY
from rich.console import Console
from typer.testing import CliRunner

import mlem_jax as ml
from mlem_jax import diffusion, plot
from mlem_jax._cli import app as _cli, comparison as _demo, comparison_runs as _runs
from mlem_jax._cli.comparison import equivalent_cost
from mlem_jax._cli.comparison_report import comparison_table
from mlem_jax.diffusion import calibrate_ladder, Ladder, load_ladder

PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def ladder():
    networks = tuple(randomised(n, seed=k) for k, n in enumerate(TINY.networks()))
    bare = Ladder(networks, TINY, {"name": "tiny"}, {})
    found = {
        kind: calibrate_ladder(bare, sde=kind == "sde", steps=16, pilots=4, progress=False)
        for kind in ("ode", "sde")
    }
    return dataclasses.replace(bare, calibrations=found)


@pytest.fixture
def run(ladder, monkeypatch):
    monkeypatch.setattr(diffusion, "load_ladder", lambda *folder: load_ladder(*folder) if folder else ladder)
    monkeypatch.setattr(_runs, "FINE_STEPS", {False: 32, True: 32})
    monkeypatch.setattr(_demo, "EULER_STEPS", (4, 8, 16))
    monkeypatch.setattr(_demo, "DPM_STEPS", (3, 6))
    monkeypatch.setattr(_demo, "COIN_SEEDS", 2)
    return lambda *arguments: CliRunner().invoke(_cli.app, list(map(str, arguments)), env={"COLUMNS": "200"})


def test_the_table_of_the_main_job_fits_80_columns():
    """With costs and errors of usual sizes, the longest names, and a deviation over coin seeds."""
    names = ("Euler", "DPM-Solver++(2M)", _demo.ALONE, _demo.PAPER, _demo.PAPER, _demo.SEVERAL)
    rows = [
        _runs.Row(name, 12, 0.206 + seed, 0.1, 0.05, None, 104.3, 12.34, seed)
        for seed, name in enumerate(names)
    ]
    comparison = _demo.Comparison(rows, {}, None, rows[-1], {}, {}, {})
    console = Console(width=80, file=io.StringIO())
    console.print(comparison_table(comparison))
    printed = console.file.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" not in printed
    assert all(name in printed for name in names) and "4.206" not in printed and "3.706 ± 0.707" in printed


@pytest.mark.slow
@pytest.mark.parametrize("sde", [(), ("--sde",)])
def test_main_job(run, tmp_path, sde):
    out, numbers = tmp_path / "out", tmp_path / "numbers.json"
    # The same with the command's name and without.
    result = run(
        *(("demo",) if sde else ()),
        "--out",
        out,
        "--json",
        numbers,
        "--samples",
        3,
        "--budget",
        14,
        "--seed",
        5,
        *sde,
    )
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in out.iterdir()) == ["coins.png", "samples.png"]
    assert all(p.read_bytes().startswith(PNG) for p in out.iterdir())
    found = json.loads(numbers.read_text())
    methods = [row["method"] for row in found["rows"]]
    rivals = ["Euler"] * 3 if sde else ["Euler"] * 3 + ["DPM-Solver++(2M)"] * 2
    assert methods == [*rivals, *["MLEM, the paper's coins"] * 2, "MLEM"]
    assert found["ours"] == "MLEM"
    for row in found["rows"]:
        assert {"error", "median_error", "typical_error", "finest_evaluations", "seconds", "seed"} <= set(row)
        assert all(0 < row[number] < np.inf for number in ("error", "finest_evaluations", "seconds"))
        # The mean of squares is at least the geometric mean, of squares too.
        assert row["typical_error"] <= row["error"] * (1 + 1e-6)
    paper = found["rows"][-3:-1]
    assert [row["seed"] for row in found["rows"][-3:]] == [5, 6, 5]
    # Other coins, and not only another name for them.
    assert paper[0]["error"] != paper[1]["error"]
    assert [row["finest_evaluations"] for row in found["rows"][: len(rivals)]] == [4, 8, 16, 3, 6][
        : len(rivals)
    ]
    assert set(found["speedup"]) == set(rivals)
    for speedup in found["speedup"].values():
        assert set(speedup) == {"finest_evaluations", "seconds"}
        assert all(0 < value < np.inf for value in speedup.values())
    # The speed-up is what the rows say.
    euler, ours = found["rows"][:3], found["rows"][-1]
    same = equivalent_cost(
        [r["typical_error"] for r in euler], [r["finest_evaluations"] for r in euler], ours["typical_error"]
    )
    gain = found["speedup"]["Euler"]
    assert gain["finest_evaluations"] == pytest.approx(same / ours["finest_evaluations"])
    for shown in ("geometric", "MLEM", f"{gain['seconds']:.2f} times the seconds"):
        assert shown in result.output


@pytest.mark.slow
def test_main_job_with_fitted_steps(run, ladder, tmp_path, monkeypatch):
    ode = ladder.calibrations["ode"]
    alone = [((1,), (n,), 0.4 / n**2) for n in (3, 4, 5, 6)]
    entries = [*alone, ((0, 1), (8, 3), 1e-2)]
    fitted = dataclasses.replace(ladder, calibrations={"ode": ode.with_fitted(catalogue(ode, entries))})
    monkeypatch.setattr(diffusion, "load_ladder", lambda: fitted)
    numbers = tmp_path / "numbers.json"
    budget = 8 * ode.costs[0] + 3
    result = run("--out", tmp_path / "out", "--json", numbers, "--samples", 2, "--budget", budget)
    assert result.exit_code == 0, result.output
    found = json.loads(numbers.read_text())
    assert found["ours"] == "several networks, fitted"
    single = [row for row in found["rows"] if row["method"] == "finest network alone, fitted"]
    # The catalogue promises 0.01 at 6.3 evaluations alone: the two entries below, for want of any above.
    assert [row["finest_evaluations"] for row in single] == [5, 6]
    assert "speed-up at that error" in result.output or "no speed-up is known" in result.output
    ours = found["rows"][-1]
    assert ours["finest_evaluations"] == pytest.approx(budget) and ours["steps"] == 8
    gain = found["speedup"]["finest network alone, fitted"]["finest_evaluations"]
    said = f"finest network alone, fitted needs {gain:.2f} times"
    assert said in result.output.replace("\n", " ")


def test_rows_are_named_by_the_levels_of_their_plan():
    shipped = diffusion.load_ladder().calibrations["ode_2"].fitted
    names = {plan.levels: _demo._name(plan, 3) for plan in shipped.plans()}
    assert names.pop((3,)) == _demo.ALONE and names.pop((0,)) == "level 1 alone, fitted"
    assert {name for levels, name in names.items() if len(levels) > 1} == {_demo.SEVERAL}


@pytest.mark.slow
def test_main_job_whose_plan_is_the_finest_network_alone(run, ladder, tmp_path, monkeypatch):
    """The gain over Euler is read at the plan's own error, not at that of its more expensive neighbour."""
    ode = ladder.calibrations["ode"]
    entries = [((1,), (n,), 1e-3 / n**2) for n in (3, 4, 5, 6)]
    fitted = dataclasses.replace(ladder, calibrations={"ode": ode.with_fitted(catalogue(ode, entries))})
    monkeypatch.setattr(diffusion, "load_ladder", lambda: fitted)
    numbers = tmp_path / "numbers.json"
    result = run("--out", tmp_path / "out", "--json", numbers, "--samples", 2, "--budget", 4)
    assert result.exit_code == 0, result.output
    found = json.loads(numbers.read_text())
    assert found["ours"] == "finest network alone, fitted" and found["ours"] not in found["speedup"]
    (ours,) = [row for row in found["rows"] if row["method"] == found["ours"] and row["steps"] == 4]
    euler = [row for row in found["rows"] if row["method"] == "Euler"]
    needed = equivalent_cost(
        [row["typical_error"] for row in euler],
        [row["finest_evaluations"] for row in euler],
        ours["typical_error"],
    )
    assert found["speedup"]["Euler"]["finest_evaluations"] == pytest.approx(needed / 4)


@pytest.mark.slow
def test_main_job_for_a_target_error(run, tmp_path):
    # More than what the plan of the smallest cost errs: met by Euler on the cheapest level, with no coin to
    # draw and too little for independent coins on both levels.
    numbers = tmp_path / "numbers.json"
    result = run("--out", tmp_path / "out", "--json", numbers, "--error", 50, "--samples", 2)
    assert result.exit_code == 0 and "wall-clock" not in result.output, result.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["coins.png", "samples.png"]
    *others, ours = json.loads(numbers.read_text())["rows"]
    assert all(row["method"] in ("Euler", "DPM-Solver++(2M)") for row in others)
    # The calibration's fewest steps are 4.
    assert ours["method"] == "MLEM" and 0 < ours["finest_evaluations"] < 4
    # How long networks so small take is chance; whatever the plan is, it says by what it was made.
    timed = run("--out", tmp_path / "out", "--error", 50, "--samples", 2, "--in-seconds")
    assert timed.exit_code == 0 and "Costs are wall-clock seconds" in timed.output, timed.output
    unknown = run("trian", "--out", tmp_path)
    assert unknown.exit_code == 2 and "No such command 'trian'" in unknown.output
    both = run("--out", tmp_path, "--error", 50, "--budget", 3)
    assert both.exit_code == 2 and "not both" in both.output


@pytest.mark.slow
def test_what_cannot_work_is_said_before_long_work(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(_demo, "compare", None)
    for option, place in (("--out", "file"), ("--json", "file/numbers.json")):
        result = run("--out", tmp_path / "out", option, tmp_path / place)
        assert result.exit_code == 2 and f"Choose another {option}" in result.output


@pytest.mark.slow
def test_a_budget_too_small_is_refused(run, tmp_path):
    result = run("--out", tmp_path, "--budget", 1e-6)
    assert result.exit_code == 2 and "larger budget" in result.output


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ([], ["demo", "train", "sample", "calibrate", "Without a command"]),
        (
            ["demo"],
            ["--out", "--json", "--seed", "--samples", "--budget", "--error", "--sde", "--in-seconds"],
        ),
        (
            ["train"],
            ["--out", "--config", "--data", "--from", "--levels", "--mflops", "--shape", "--steps"],
        ),
    ],
)
def test_help_names_every_option(command, options):
    result = CliRunner().invoke(_cli.app, [*command, "--help"], env={"COLUMNS": "200"})
    plain = re.sub(r"\x1b\[[0-9;]*m", "", result.output)
    assert result.exit_code == 0 and all(option in plain for option in options)


@pytest.mark.parametrize("error", [0.1, 1e-3, 0.5], ids=["inside", "dearer", "cheaper"])
def test_equivalent_cost_is_exact_for_power_laws(error):
    # error = 2 / cost, measured from cost 8 to cost 64, in any order.
    costs = [16.0, 8.0, 32.0, 64.0]
    assert equivalent_cost([2 / c for c in costs], costs, error) == pytest.approx(2 / error)


@pytest.mark.parametrize("cost", [1.0, 3.0, 6.0, 50.0])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]], ids=["sorted", "unsorted"])
def test_equivalent_cost_goes_by_the_nearest_two_points(cost, order):
    # error = 4 / cost up to cost 4, 64 / cost**3 from there: a kink that no other pair of points would give.
    def error(cost):
        return 4 / cost if cost < 4 else 64 / cost**3

    costs = [[2.0, 4.0, 8.0][i] for i in order]
    assert equivalent_cost([error(c) for c in costs], costs, error(cost)) == pytest.approx(cost)


def test_pictures(tmp_path):
    images = np.linspace(-1, 1, 4 * 6 * 5).reshape(4, 6, 5)
    figure = plot.samples([("one", images), ("two", images[:2])], columns=3)
    assert len(figure.axes) == 2 and figure.axes[0].get_images()[0].get_array().shape == (6, 15)
    # Fewer images than columns.
    (strip,) = plot.samples([("one", images)]).axes[0].get_images()
    np.testing.assert_allclose(strip.get_array(), np.concatenate(list(images), axis=1))
    plot.save_figure(figure, tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(PNG)
    before = (tmp_path / "new" / "a.png").read_bytes()

    class Broken:
        def savefig(self, path, dpi, format):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        plot.save_figure(Broken(), tmp_path / "new" / "a.png")
    # The old picture is whole and nothing else is left.
    assert os.listdir(tmp_path / "new") == ["a.png"] and (tmp_path / "new" / "a.png").read_bytes() == before


@pytest.mark.slow
def test_pictures_of_calibrations_and_plans(ladder):
    calibration = ladder.calibration()
    figure = plot.increments(calibration, log_time=True)
    assert len(figure.axes) == 2 and len(figure.axes[0].lines) == 2
    plan = calibration.plan(budget=12, levels=(0, 1))
    figure = plot.error_against_cost(calibration, [plan])
    assert len(figure.axes[0].lines) == 3
    figure = plot.plan_raster(plan, key=jr.key(0))
    fires = len(figure.axes[0].collections[1].get_positions())
    # Midpoint coins fire once in each unit of the clock: within one of its length.
    sometimes = plan.table[:, 1] < 1
    assert abs(fires - (~sometimes).sum() - plan.table[sometimes, 1].sum()) <= 1


def test_picture_of_firings_marks_each_evaluation():
    often = ml.EvaluationReport(3, np.array([3, 1]), None, None, (np.array([1.0, 2.0, 4.0]), np.array([2.0])))
    once = dataclasses.replace(often, evaluation_times=(np.array([1.0]), np.array([])))
    # The second solve had left out the second of three levels.
    levels = [(0, 1), (0, 2)]
    figure = plot.firings([("a", often), ("b", once)], levels=levels, time_label="s", log_time=True)
    for axis, report, kept in zip(figure.axes, (often, once), levels, strict=True):
        for line, times in zip(axis.collections, report.evaluation_times, strict=True):
            np.testing.assert_array_equal(line.get_positions(), times)
        names = [f"level {k + 1}: {len(t)}" for k, t in zip(kept, report.evaluation_times, strict=True)]
        assert [label.get_text() for label in axis.get_yticklabels()] == names
        assert axis.get_xscale() == "log"
    assert figure.axes[-1].get_xlabel() == "s"


def test_picture_of_firings_needs_a_record():
    report = ml.EvaluationReport(3, np.array([3, 1]), None, None, None)
    with pytest.raises(ValueError, match="record="):
        plot.firings([("a", report)])
