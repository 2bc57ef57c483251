"""Ladders with classes: guided sampling that stays lazy, calibration with a label for each pilot, and the commands."""

import dataclasses

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import randomised, stand_in, TINY
from label_problems import CLASSES, command, config
from problems import as_user, assert_mean
from sampling_problems import made_plan

import mlem_jax as ml
from mlem_jax import diffusion
from mlem_jax.diffusion import (
    calibrate_ladder,
    Ladder,
    MixedPrecision,
    sample,
    save_ladder,
)
from mlem_jax.diffusion._ladder import as_stored


@pytest.fixture(scope="module")
def ladder():
    """Two networks, pushed so that labels matter."""
    networks = tuple(as_stored(randomised(n, seed=k)) for k, n in enumerate(config().networks()[:2]))
    bare = Ladder(networks, config(), {"name": "tiny"}, {})
    found = {"ode": stand_in(bare), "sde": stand_in(bare, sde=True)}
    return dataclasses.replace(bare, calibrations=found)


@pytest.mark.slow
def test_guided_sampling_of_a_ladder_stays_lazy(ladder):
    counts = [0, 0]

    def counted(level, k):
        def bump():
            counts[k] += 1

        def drift(t, y, label):
            # Without operands the callback is not batched: one call is one execution, of any batch.
            jax.debug.callback(bump)
            return level(t, y, label)

        return drift

    term = ladder.term(guidance=[1.0, 3.0])
    term = ml.MultilevelTerm(*(counted(level, k) for k, level in enumerate(term.levels)), costs=term.costs)
    ts = ladder.config.process.grid(16)
    solver = ml.MLEM([1.0, 0.25], coins=ml.IndependentCoins(), key=jr.key(0))

    @jax.jit
    @jax.vmap
    def end(y, label):
        save = diffrax.SaveAt(t1=True, solver_state=True)
        return diffrax.diffeqsolve(
            term,
            solver,
            ts[0],
            ts[-1],
            None,
            y,
            label,
            stepsize_controller=diffrax.StepTo(ts),
            saveat=save,
        )

    y0 = jnp.broadcast_to(80 * jr.normal(jr.key(1), (4, 4, 1)), (3, 4, 4, 1))
    solution = end(y0, jnp.arange(3))
    jax.effects_barrier()
    np.testing.assert_array_equal(ml.evaluation_report(solution.solver_state).evaluations, counts)
    assert counts[0] == 16 and 0 < counts[1] < 10
    # The same noise with other labels is another image.
    assert jnp.min(jnp.max(jnp.abs(jnp.diff(solution.ys[:, 0], axis=0)), axis=(1, 2, 3))) > 0.01


def test_a_ladder_says_how_it_is_guided(ladder):
    plain, single, each = (ladder.predictors(guidance=g) for g in (None, 2, [1.0, 3.0]))
    assert [p.network.scale for p in single] == [2.0, 2.0] and [p.network.scale for p in each] == [1.0, 3.0]
    assert [p.network.null for p in each] == [CLASSES] * 2
    assert all(p.network is network for p, network in zip(plain, ladder.networks, strict=True))
    costs = [ladder.term(guidance=g).costs for g in (None, 2.0)]
    assert all(1.5 < b / a <= 2.1 for a, b in zip(*costs, strict=True))
    with pytest.raises(
        ValueError, match=r"guidance=\[1.0\] for 2 levels; one scale for all, or one for each"
    ):
        ladder.predictors(guidance=[1.0])
    without = Ladder(TINY.networks(), TINY, {}, {})
    with pytest.raises(ValueError, match="guidance=2.0 needs networks that take a label.*without classes"):
        without.term(guidance=2.0)


def test_a_ladder_may_compute_in_bfloat16(ladder):
    networks = tuple(MixedPrecision(network) for network in ladder.networks)
    narrow, wide = (
        dataclasses.replace(ladder, networks=n).term(guidance=2.0) for n in (networks, ladder.networks)
    )
    y = jr.normal(jr.key(0), (4, 4, 1))
    narrow.check_levels(1.0, y, jnp.asarray(1))
    for a, b in zip(narrow.levels, wide.levels, strict=True):
        out, exact = (eqx.filter_jit(level)(1.0, y, jnp.asarray(1)) for level in (a, b))
        assert out.dtype == jnp.float32 and jnp.any(out != exact)
        assert jnp.max(jnp.abs(out - exact)) < 0.05 * jnp.max(jnp.abs(exact))


def test_samples_of_a_ladder_have_the_label_they_were_asked_for(ladder):
    settings = dict(
        plan=made_plan(process=ladder.config.process), key=jr.key(3), guidance=2.0, progress=False
    )
    mixed = sample(ladder, n=3, labels=jnp.array([0, 2, CLASSES]), **settings).images
    alone = sample(ladder, n=3, args=jnp.asarray(2), **settings).images
    np.testing.assert_allclose(mixed[1], alone[1], rtol=1e-3, atol=1e-3)
    assert all(np.abs(mixed[other] - alone[other]).max() > 1e-2 for other in (0, 2))


def test_samples_without_a_fitting_label_are_refused(ladder):
    settings = dict(plan=made_plan(process=ladder.config.process), key=jr.key(3), n=2, progress=False)
    with pytest.raises(ValueError, match=r"needs a label and was given none.*sample\(..., labels=labels\)"):
        sample(ladder, **settings)
    with pytest.raises(ValueError, match=r"needs a label and was given none"):
        sample(ladder, guidance=2.0, **settings)
    with pytest.raises(ValueError, match=r"ladder with 3 classes was given labels from 0 to 4; 0 to 2 are"):
        sample(ladder, labels=np.array([0, 4]), **settings)
    with pytest.raises(ValueError, match=r"guidance=2.0 is for a ladder. Write NoisePredictor\(Guided"):
        sample(ladder.predictors(), shape=(4, 4, 1), guidance=2.0, **settings)


def measured(**settings):
    """A calibration of two levels whose increments are the label, and as much again."""
    term = ml.MultilevelTerm(lambda t, y, a: a - 0 * y, lambda t, y, a: 2 * a - 0 * y, costs=(0.5, 1.0))
    y0s = jnp.zeros((5, 1))
    ts = jnp.linspace(0.0, 1.0, 9)
    return ml.calibrate(term, ts, y0s, key=jr.key(0), trials=(), batch_size=3, progress=False, **settings)


@pytest.mark.slow
def test_every_pilot_of_a_calibration_has_its_own_label():
    labels = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])
    found = measured(labels=labels).measurements
    # Of both levels: the root mean square of the labels, at every step, and pilot by pilot.
    np.testing.assert_allclose(found.increment_rms, np.sqrt(np.mean(np.square(labels))), rtol=1e-5)
    for effects in np.moveaxis(found.effects, 2, 3).reshape(-1, 5):
        np.testing.assert_allclose(np.abs(effects), labels, rtol=1e-5)
    # The trajectories too are the pilots' own: Euler on the cheaper level alone ends half as far.
    np.testing.assert_allclose(found.single_error[0], found.increment_rms[0, 0], rtol=1e-4)
    with pytest.raises(
        ValueError, match="Give args, the same for all pilots, or labels, one for each; not both"
    ):
        measured(labels=labels, args=1.0)
    with pytest.raises(
        ValueError, match=r"labels has an array of shape \(4,\) for 5 pilots.*shape \(5, ...\)"
    ):
        measured(labels=labels[:4])


@pytest.mark.slow
def test_pilots_of_a_ladder_have_labels_drawn_uniformly(ladder, monkeypatch):
    """z-test at 5 standard errors, n = 4,000, the ladder's own seed."""
    asked = []

    class Asked(Exception):
        """Ends the call where the measurement would begin."""

    def pretend(*arguments, **settings):
        asked.append((arguments, settings))
        raise Asked

    monkeypatch.setattr("mlem_jax.diffusion._ladder.calibrate.calibrate", pretend)
    with as_user(), pytest.raises(Asked):
        calibrate_ladder(ladder, pilots=4_000, guidance=2.0, sde=True)
    ((terms, _, y0s), settings) = asked[0]
    for k in range(CLASSES):
        assert_mean(settings["labels"] == k, 1 / CLASSES)
    assert settings["labels"].shape == y0s.shape[:1]
    assert terms.term.levels[0].predictor.network.scale == 2.0


@pytest.mark.slow
def test_labels_and_guidance_by_commands(ladder, tmp_path, monkeypatch):
    save_ladder(tmp_path / "l", ladder)
    asked = []

    def pretend(ladder, **settings):
        asked.append(settings["guidance"])
        return stand_in(ladder, sde=settings["sde"], guidance=settings["guidance"])

    monkeypatch.setattr(diffusion, "calibrate_ladder", pretend)
    found = command(
        "calibrate",
        "--checkpoint",
        tmp_path / "l",
        "--guidance",
        1,
        "--guidance",
        3,
        "--out",
        tmp_path / "c.npz",
    )
    assert found.exit_code == 0 and asked == [[1.0, 3.0]], found.output
    (line,) = [line for line in found.output.splitlines() if line.startswith("Draw with it: ")]
    assert "--guidance 1.0 --guidance 3.0" in line
    drawing = line.removeprefix("Draw with it: python -m mlem_jax ").replace("FOLDER", str(tmp_path / "out"))
    drawn = command(*drawing.split(), "--n", 4, "--budget", 3)
    assert drawn.exit_code == 0, drawn.output
    with np.load(tmp_path / "out" / "samples.npz") as file:
        assert file["images"].shape == (4, 4, 4, 1)
    common = ("sample", "--checkpoint", tmp_path / "l", "--out", tmp_path / "no", "--n", 2, "--budget", 3)
    for arguments, message in (
        (("--label", 4), "--label 4: this ladder has 3 classes; 0 to 2 are expected"),
        (("--guidance", 3), "saved with is without guidance. Measure one with 'python -m mlem_jax calibrate"),
        (
            ("--guidance", 2, "--calibration", tmp_path / "c.npz"),
            "Measure one for this ladder and these options with",
        ),
    ):
        result = command(*common, *arguments)
        assert result.exit_code == 2 and message in result.output, result.output
    shipped = command("sample", "--out", tmp_path / "no", "--label", 1)
    assert shipped.exit_code == 2 and "--label is for a ladder with classes" in shipped.output
