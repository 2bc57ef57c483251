"""The studies of particles, scaling, guidance and accelerators, on their smallest settings."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import stand_in
from problems import remeasured

import mlem_jax as ml

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import _scaling_parts as scaling
import curvature
import fashion_mnist
import gpu
import guidance
from _image_methods import DDIM, image_problem, OURS, planned, SINGLE
from _ladder_study import best_grid, EULER, INDEPENDENT, MULTISTEP, tiny_ladder
from _learned import learned
from _methods import draw
from _particles import (
    CHARGE,
    draw_particles,
    initial_states,
    NEIGHBOURS,
    particles,
    rivals,
    SCREENING,
    THICKNESS,
)
from _runs import measure
from _shapes import colour_images
from faces import tiny_config
from particles import SIZES


def test_forces_of_all_pairs_are_the_gradient_of_an_energy():
    """Level 3 less level 1 is the force of the pairs that are not listed as neighbours: minus the gradient of the sum
    of `CHARGE exp(-r / SCREENING) / r` over them, `r` softened by THICKNESS."""
    problem = particles(2, 6, 64)
    y = initial_states(jr.key(0), 2, 6, 2)

    def energy(y, listed):
        away = y[:, :, None] - y[:, None, :]
        r = jnp.sqrt(jnp.sum(away**2, 0) + THICKNESS**2)
        return 0.5 * jnp.sum(jnp.where(listed, 0.0, CHARGE * jnp.exp(-r / SCREENING) / r))

    ring, place = np.divmod(np.arange(24), 6)
    apart = np.abs(place[:, None] - place)
    apart = np.minimum(apart, 6 - apart)
    listed = (ring[:, None] == ring) & (apart <= NEIGHBOURS[-1])
    force = -jax.jit(jax.vmap(jax.grad(energy), (0, None)))(y, jnp.asarray(listed))
    at_rest = [jax.jit(lambda y, level=level: level(0.0, y, None))(y) for level in problem.levels]
    found = at_rest[2] - at_rest[0]
    np.testing.assert_allclose(found, force, rtol=1e-3, atol=1e-4 * float(jnp.max(jnp.abs(force))))
    # Points for rings are near, and not the same.
    rough = at_rest[1] - at_rest[0]
    distance = float(jnp.linalg.norm(rough - force) / jnp.linalg.norm(force))
    assert 1e-4 < distance < 0.2


@pytest.mark.slow
def test_rivals_on_particles():
    """Four rings of six beads: Euler with more steps is nearer to the reference, and so is ShARK with as many; costs
    count evaluations."""
    problem = particles(2, 6, 256)
    batch = draw_particles(problem, jr.key(1), initial_states(jr.key(2), 2, 6, 2))
    rows = measure(rivals(problem, (64, 128), (64,), (2,)), [batch], coin_seeds=1)
    found = {(row["method"], row["setting"]): row for row in rows}
    few, many = (found["Euler, all pairs", f"{n} steps"] for n in (64, 128))
    assert many["error"] < 0.7 * few["error"]
    assert found["ShARK, all pairs", "64 steps"]["error"] < 0.5 * few["error"]
    assert (few["cost"], many["cost"], found["ShARK, all pairs", "64 steps"]["cost"]) == (64, 128, 128)
    held = found["held correction", "level 1, every 2 of 64 steps"]
    assert held["cost"] == pytest.approx(32 + 64 * problem.costs[0])
    assert set(SIZES["smoke"].targets) <= set(SIZES["smoke"].steps)


def test_second_differences_of_drifts_are_exact_for_squares():
    # Level k's increment per unit of log s is 2**-k (log s)**2: second differences over a lag L are 2**-k 2 L**2.
    ts = np.geomspace(80.0, 0.01, 3001)
    clock = np.log(ts[:-1])
    sizes = np.array([1.0, 0.5, 0.25])
    kicks = (clock**2 / ts[:-1])[:, None] * sizes
    calibration = stand_in(tiny_ladder(3))
    measured = dataclasses.replace(
        calibration.measurements,
        ts=ts,
        increment_rms=np.abs(kicks),
        effects=np.broadcast_to(kicks[:, :, None, None], (3000, 3, 2, 1)),
        costs=np.array([0.1, 0.3, 1.0]),
    )
    calibration = dataclasses.replace(calibration, measurements=measured)
    rows = curvature.second_differences(calibration)
    assert [row["lag of log s"] for row in rows] == list(curvature.LAGS)
    for row in rows:
        whole = 2 * row["lag of log s"] ** 2
        assert row["finest"] == pytest.approx(1.75 * whole, rel=1e-3)
        assert row["finest - level 1"] == pytest.approx(0.75 * whole, rel=1e-3)
        assert row["finest - level 2"] == pytest.approx(0.25 * whole, rel=1e-3)


@pytest.mark.slow
def test_scaling_by_hand_and_by_the_library_agree():
    """Two levels in 8 steps, 4 firings: the plain scan written by hand gives the library's numbers."""
    ladder = tiny_ladder(2)
    term, y0 = ladder.term(), scaling.noise(ladder, 2)
    ts = ladder.config.process.grid(8)
    found = scaling.loop("", term, ts, y0, 1)
    assert found["relative_difference"] < 1e-5
    plan = scaling.plan_of(ts, (0, 1), ladder.flops())
    row = scaling.measured(term, plan, y0, 1)
    assert row["evaluations"] == [8, 4] and row["euler_steps"] == 4
    cheap, finest = ladder.flops()
    assert row["finest_evaluations"] == pytest.approx(4 + 8 * cheap / finest)
    sizes = [
        scaling.megabytes((term, ml.MLEM(plan.table[0], key=jr.key(0)), ts, scaling.noise(ladder, n)))
        for n in (1, 9)
    ]
    assert sizes[1]["beside_arguments"] > sizes[0]["beside_arguments"]
    assert sizes[1]["arguments"] - sizes[0]["arguments"] == pytest.approx(8 * y0[0].nbytes / 1e6)


def plannable(ladder, **settings):
    """A calibration in which single levels err much and corrections are small, so that plans keep several levels."""
    made = stand_in(ladder, **settings)
    measured = made.measurements
    steps = np.array([8, 16, 32])
    errors = np.linspace(3.0, 1.0, 3) * np.geomspace(10.0, 1.0, len(ladder.networks))[:, None]
    return remeasured(
        made,
        ts=np.asarray(ladder.config.process.grid(32), float),
        increment_rms=np.repeat(measured.increment_rms, 4, axis=0),
        effects=1e-3 * np.repeat(measured.effects, 4, axis=0),
        single_steps=steps,
        single_error=errors,
        single_uncertainty=np.full(errors.shape, 0.1),
    )


@pytest.mark.slow
def test_study_of_guidance_runs():
    """Untrained networks: every method has finite errors, single-model samplers cost their steps, and the table has a
    line for each method. DPM-Solver++(2M) is nearer to the fine solution than Euler with as many steps."""
    ladder = tiny_ladder(2, classes=10)
    effort = guidance.EFFORTS["smoke"]
    found, picture = guidance.study(ladder, [plannable(ladder, guidance=guidance.SCALE)], effort)
    rows = {}
    for row in best_grid(found["rows"]):
        assert np.isfinite(row["error"])
        rows.setdefault(row["method"], []).append(row)
    assert set(rows) == {EULER, MULTISTEP, INDEPENDENT, OURS}
    assert [row["cost"] for row in rows[EULER]] == [4, 8]
    assert rows[MULTISTEP][0]["error"] < rows[EULER][0]["error"]
    assert {row["method"] for row in found["reach"]} == set(rows)
    assert len(picture.axes) == 1 + len(rows)
    assert found["references_differ"] < 0.01


@pytest.mark.slow
def test_study_of_all_rivals_runs():
    """Untrained networks: every rival has finite errors, and Euler with 8 steps costs 8 at the error of its 8 steps."""
    ladder = tiny_ladder(3)
    ladder = dataclasses.replace(ladder, calibrations={"ode": plannable(ladder)})
    found = fashion_mnist.study(ladder, sde=False, name="smoke")["found"]
    assert all(np.isfinite(row["error"]) for row in found["rows"] if row["method"] in SINGLE[False])
    assert {*SINGLE[False], DDIM, OURS} <= {row["method"] for row in found["rows"]}
    (itself,) = (r for r in found["reach"] if r["method"] == DDIM and r["error_of_euler_steps"] == 8)
    assert itself["evaluations"] == pytest.approx(8)


@pytest.mark.slow
@pytest.mark.parametrize("sde", [False, True])
def test_learned_probabilities_keep_the_cost_of_their_plan(sde, monkeypatch):
    """On untrained networks: they start at those of the plan and end at others, and a solve costs what the plan says,
    within five standard errors over 40 coin seeds. Without a plan of all levels there is no method."""
    starts, learn = [], ml.learn_probabilities

    def recorded(*given, start, **settings):
        starts.append(start)
        return learn(*given, start=start, **settings)

    monkeypatch.setattr(ml, "learn_probabilities", recorded)
    ladder = tiny_ladder(3)
    calibration = plannable(ladder)
    problem = image_problem(ladder, sde, fine=32)
    method = learned(problem, calibration, 6.0, iterations=3, batch_size=2)
    assert method is not None and method.random and method.multilevel
    plan = calibration.plan(budget=6.0, coins=ml.IndependentCoins(), levels=(0, 1, 2))
    np.testing.assert_array_equal(starts[0].values, plan.probabilities.values)
    same = planned(problem, "", plan, ml.IndependentCoins(), "", 1, random=True)
    batch = draw(problem, jr.key(0), 2, lambda batch: batch.y0)
    costs = []
    for seed in range(40):
        prepared = method.prepare(batch, seed)
        end, cost = prepared.read(prepared.call())
        costs.append(cost)
    assert abs(np.mean(costs) - plan.cost) < 5 * np.std(costs) / np.sqrt(40) + 0.02 * plan.cost
    theirs = same.prepare(batch, 39)
    assert not np.allclose(theirs.read(theirs.call())[0], end)
    assert learned(problem, calibration, 0.001, iterations=3, batch_size=2) is None


@pytest.mark.slow
def test_times_of_levels_on_an_accelerator_have_a_row_for_every_setting():
    rows = list(gpu.measured(tiny_config(), (2,), gpu.PRECISIONS, rounds=1, calls=1))
    assert [(row["precision"], row["level"]) for row in rows] == [
        (precision, level) for precision in gpu.PRECISIONS for level in (3, 2, 1)
    ]
    for row in rows:
        assert row["milliseconds"] > 0
        assert row["tflop_per_second"] == pytest.approx(2 * row["mflop"] / row["milliseconds"] / 1e3)
        (finest,) = (r for r in rows if (r["precision"], r["level"]) == (row["precision"], 3))
        assert row["cost_in_seconds"] == pytest.approx(row["milliseconds"] / finest["milliseconds"])


def test_shapes_are_bytes_that_differ():
    images = colour_images(3, 16)
    assert images.dtype == np.uint8 and len(np.unique(images.reshape(3, -1), axis=0)) == 3
