"""Ladders of one level, by Python and by command: calibrated, planned, sampled with a plan and without.

Their networks are zero, so that what sampling does is known: as predictions of the noise they denoise nothing, as
predictions of the clean image everything."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import TINY
from typer.testing import CliRunner

import mlem_jax as ml
from mlem_jax._cli import app as _cli
from mlem_jax.diffusion import calibrate_ladder, Ladder, load_ladder, sample, save_ladder

N = 2


def zero_ladder(prediction):
    config = dataclasses.replace(TINY, prediction=prediction, levels=TINY.levels[1:])
    networks = jax.tree.map(jnp.zeros_like, config.networks())
    return Ladder(networks, config, {"name": "zero"}, {})


def run(*arguments):
    result = CliRunner().invoke(_cli.app, list(map(str, arguments)), env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_a_level_that_does_not_denoise_is_named_by_both_interfaces(tmp_path):
    # Of predictions of the noise that are zero dy/ds = 0: all of the start noise is left at the end.
    save_ladder(tmp_path / "ladder", zero_ladder("eps"))
    common = ("--checkpoint", tmp_path / "ladder")
    file = tmp_path / "file.npz"
    output = run("calibrate", *common, "--steps", 8, "--pilots", 3, "--fit-pilots", 0, "--out", file)
    # In the report and in the plan below it.
    assert output.count("The finest level does not denoise: 100% of the noise that sampling starts from") == 2
    found = ml.Calibration.load(file)
    assert found.measurements.start_share == pytest.approx(1, rel=1e-6)
    assert any("does not denoise" in line for line in found.plan(budget=8).advice)
    # No dead end: the command that calibrate prints, and steps without a calibration.
    assert f"mlem_jax sample --checkpoint {tmp_path / 'ladder'} --calibration {file}" in output
    run("sample", *common, "--calibration", file, "--n", N, "--out", tmp_path / "planned", "--budget", 8)
    run("sample", *common, "--steps", 8, "--n", N, "--out", tmp_path / "by_hand")
    noise = [np.load(tmp_path / name / "samples.npz")["images"] / 80 for name in ("planned", "by_hand")]
    np.testing.assert_allclose(noise[0], noise[1], rtol=1e-5)
    assert 0.7 < np.std(noise[0]) < 1.3


@pytest.mark.slow
def test_a_level_that_denoises_is_planned_and_sampled(tmp_path):
    # Of predictions of the clean image that are zero dy/ds = y / s, so y = s: one part in 8,000 is left at the end.
    bare = zero_ladder("x0")
    measured = calibrate_ladder(bare, steps=8, pilots=3, progress=False)
    assert measured.measurements.start_share == pytest.approx(0.01 / 80, rel=1e-3) and not measured.remarks
    save_ladder(tmp_path / "ladder", dataclasses.replace(bare, calibrations={"ode": measured}))
    ladder = load_ladder(tmp_path / "ladder")
    plan = ladder.plan(budget=8)
    assert plan.levels == (0,) and "There is one level" in plan.advice[0]
    drawn = [
        sample(ladder, n=N, plan=chosen, key=jr.key(0), progress=False).images
        for chosen in (plan, ml.steps_plan(ladder.config.process.grid(8)))
    ]
    # At s_min = 0.01 the state is its own noise times 0.01.
    for images in drawn:
        assert 0 < np.abs(images).max() < 0.05
