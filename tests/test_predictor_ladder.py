"""Ladders of networks that were not trained here: what they accept, what they adapt, and that their calibrations are
those of the same levels elsewhere."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import randomised, TINY
from jaxtyping import Array
from problems import as_user

import mlem_jax as ml
from mlem_jax.diffusion import (
    calibrate_ladder,
    calibrate_methods,
    EDM,
    FlowMatching,
    Guided,
    Ladder,
    NoisePredictor,
    PredictorLadder,
    sample,
    VariancePreserving,
)

SHAPE = (4,)
# Standard deviation of the images, which are independent normal numbers.
SIZE = 0.5


class Denoiser(eqx.Module):
    """The exact mean of such an image given it with noise, plus a small error; more hidden numbers cost more."""

    hidden: Array
    error: float
    scale: Array

    def __call__(self, x, sigma, label=None):
        exact = SIZE**2 / (SIZE**2 + sigma**2) * x
        wrong = jnp.tanh(x[:, None] * self.hidden[None]).mean(axis=1) / (1 + sigma)
        shift = 0.0 if label is None else label
        return exact + self.error * wrong + 0 * self.scale + shift


def denoiser(width, error=0.0, scale=1.0):
    return Denoiser(jnp.linspace(0.5, 1.5, width), error, jnp.asarray(scale))


class Noise(eqx.Module):
    """The same as a prediction of the noise, for a variance-preserving process."""

    inside: Denoiser

    def __call__(self, x, s):
        y = x * jnp.sqrt(1 + s**2)
        return (y - self.inside(y, s)) / s


def edm(width, error=0.0, **settings):
    process = EDM(s_min=0.05, s_max=20.0)
    return NoisePredictor(denoiser(width, error, **settings), process, "x0", conditioning="sigma")


def flow(width):
    """The same denoiser trained as a flow whose time is that of the image."""
    process = FlowMatching(s_min=0.1, s_max=50.0, noise_at=0)
    # It sees x = alpha y.
    network = eqx.Partial(lambda inside, x, s: inside(x * (1 + s), s), denoiser(width))
    return NoisePredictor(network, process, "x0", conditioning=lambda s: s)


@pytest.fixture(scope="module")
def ladder():
    bare = PredictorLadder([edm(2, 0.1), edm(64, 0.0)], shape=SHAPE)
    return calibrate_methods(bare, steps=16, pilots=8, progress=False)


@pytest.mark.slow
def test_it_is_calibrated_for_all_methods_and_takes_the_better_plan(ladder):
    assert sorted(ladder.calibrations) == ["ode", "ode_2"]
    plans = {kind: found.plan(budget=4) for kind, found in ladder.calibrations.items()}
    best = min(plans.values(), key=lambda plan: plan.error)
    chosen = ladder.plan(budget=4)
    assert chosen.error == best.error and chosen.method == best.method


@pytest.mark.slow
def test_what_methods_have_in_common_is_measured_once(ladder):
    """The second method's calibration is the one that it gets alone, but for the clock."""
    alone = calibrate_ladder(ladder, method=ml.AdamsBashforth("log"), steps=16, pilots=8, progress=False)
    shared, first = ladder.calibrations["ode_2"], ladder.calibrations["ode"]
    for mine, other in ((alone.measurements, shared.measurements), (alone.trials, shared.trials)):
        for field in dataclasses.fields(mine):
            if field.name != "seconds":
                np.testing.assert_array_equal(getattr(mine, field.name), getattr(other, field.name))
    np.testing.assert_array_equal(first.measurements.seconds, shared.measurements.seconds)
    changed = PredictorLadder([edm(2, 0.2), edm(64)], shape=SHAPE)
    for other, settings, message in (
        (ladder, {"steps": 8}, "other times"),
        (ladder, {"pilots": 4}, "other pilots"),
        (changed, {}, "other levels"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrate_ladder(other, like=first, **{"steps": 16, "pilots": 8, **settings})


@pytest.mark.slow
def test_samples_are_those_of_the_same_levels_without_a_ladder(ladder):
    plan, settings = ladder.plan(budget=4), dict(n=3, key=jr.key(1), progress=False)
    found = sample(ladder, plan=plan, **settings).images
    alone = sample(list(ladder.predictors()), plan=plan, shape=SHAPE, **settings).images
    np.testing.assert_array_equal(found, alone)
    with pytest.raises(ValueError, match="leave out shape"):
        sample(ladder, plan=plan, shape=SHAPE, **settings)


@pytest.mark.slow
def test_calibrations_come_back_from_their_folder_and_belong_to_their_levels(ladder, tmp_path):
    folder = tmp_path / "new" / "calibrations"
    ladder.save_calibrations(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["calibration_ode.npz", "calibration_ode_2.npz"]
    bare = PredictorLadder(ladder.predictors(), shape=SHAPE)
    again = bare.load_calibrations(folder)
    assert not bare.calibrations
    assert again.plan(budget=4).error == ladder.plan(budget=4).error
    with pytest.raises(FileExistsError, match="calibration_ode.npz exists already"):
        ladder.save_calibrations(folder)
    with pytest.raises(FileExistsError, match="is a file"):
        ladder.save_calibrations(folder / "calibration_ode.npz")
    other = PredictorLadder([edm(2, 0.2), edm(64)], shape=SHAPE)
    with pytest.raises(ValueError, match="of which number 1 differ"):
        other.load_calibrations(folder)
    with pytest.raises(FileNotFoundError, match="has no calibrations"):
        bare.load_calibrations(tmp_path)
    (folder / "calibration_ode.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="damaged"):
        bare.load_calibrations(folder)


def test_processes_predictions_and_conditionings_may_differ():
    """Three descriptions of one exact denoiser: whatever they are told and return, their drifts are the same."""
    vp = NoisePredictor(Noise(denoiser(16)), VariancePreserving(0.01, 40.0), "eps", conditioning=lambda s: s)
    ladder = PredictorLadder([flow(4), vp, edm(64)], shape=SHAPE)
    assert (ladder.process.s_min, ladder.process.s_max) == (0.1, 20.0)
    assert isinstance(ladder.process, EDM)
    y, s = jr.normal(jr.key(0), SHAPE), jnp.asarray(0.7)
    first, *others = (drift(s, y, None) for drift in ladder.term().levels)
    np.testing.assert_allclose(first, s / (SIZE**2 + s**2) * y, rtol=1e-5)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-5)
    (remark,) = ladder.remarks
    assert "from s = 20 down to 0.1" in remark and remark in repr(ladder)
    assert not PredictorLadder([edm(4), edm(64)], shape=SHAPE).remarks


@pytest.mark.slow
def test_levels_that_do_not_belong_together_are_remarked_on():
    """A level that is told a thousandth of its noise level returns the noisy image for the clean one."""
    deaf = dataclasses.replace(edm(2), conditioning=lambda s: s / 1000)
    ladder = PredictorLadder([deaf, edm(64)], shape=SHAPE)
    found = calibrate_ladder(ladder, steps=8, pilots=8, progress=False)
    assert any("Level 2 differs from level 1 by" in remark for remark in found.remarks)
    assert "conditioning" in str(found)


@pytest.mark.slow
def test_a_single_network_has_plans(ladder):
    single = PredictorLadder([edm(64)], shape=SHAPE)
    found = calibrate_methods(single, steps=16, pilots=8, progress=False)
    assert found.plan(budget=6).levels == (0,)


@pytest.mark.slow
def test_labels_of_pilots_come_from_those_given():
    """Images around the label: the drift of level 1 at s_max is (y - label) / s_max up to the images' size."""
    given = jnp.full((3, *SHAPE), 100.0)
    ladder = PredictorLadder([edm(2), edm(64)], shape=SHAPE, labels=given)
    found = calibrate_ladder(ladder, steps=8, pilots=8, progress=False)
    drift = found.measurements.increment_rms[0, 0]
    assert 4 < drift < 6.5  # 100 / 20 = 5 from the label, beside 1 from the noise.


def test_networks_tell_their_shape_and_labels():
    small, large = TINY.networks()
    found = PredictorLadder([NoisePredictor(n, VariancePreserving()) for n in (small, large)])
    assert found.shape == (4, 4, 1) and found.classes is None and found.labels is None
    assert found.level_costs()[0] < found.level_costs()[1]
    assert [line.split(",")[0] for line in repr(found).splitlines()] == [
        "PredictorLadder for images of 4 x 4 x 1",
        "  level 1: UNet",
        "  level 2: UNet",
        "  calibrations: none",
    ]


def labelled(classes, width=4):
    config = dataclasses.replace(TINY, classes=classes)
    return NoisePredictor(
        dataclasses.replace(config.levels[0], width=width).network(TINY.shape, classes, key=jr.key(0)),
        VariancePreserving(),
    )


@pytest.mark.parametrize(
    ("levels", "settings", "message"),
    [
        ([], {}, "at least one NoisePredictor"),
        (edm(4), {}, r"write \[predictor\]"),
        ([edm(4), denoiser(8)], {}, "Level 2 of PredictorLadder is a Denoiser"),
        ([edm(4), edm(64)], {}, r"write for example shape=\(32, 32, 3\)"),
        ([edm(64), edm(4)], {"shape": SHAPE}, "Their order by cost: 2, 1"),
        ([edm(4), edm(4)], {"shape": SHAPE}, "each more expensive"),
        ([edm(4), edm(64)], {"shape": SHAPE, "costs": [2, 1]}, "cheapest level first"),
        ([edm(4), edm(64)], {"shape": (2, 2)}, "Level 1, called on an image of 2 x 2"),
        ([labelled(3)], {"shape": (8, 8, 1)}, r"Level 1 is for images of 4 x 4 x 1, and shape=\(8, 8, 1\)"),
        ([labelled(None), labelled(3)], {}, "Level 2 takes 3 labels, and no labels are expected"),
        ([labelled(3), labelled(4, 8)], {}, "Level 2 takes 4 labels, and 3 labels are expected"),
        (
            [dataclasses.replace(edm(4), process=EDM(s_min=30.0)), edm(64)],
            {"shape": SHAPE},
            "30 to 80, 0.05 to 20, which have none in common",
        ),
    ],
)
def test_levels_that_do_not_fit_are_refused(levels, settings, message):
    with as_user(), pytest.raises(ValueError, match=message):
        PredictorLadder(levels, **settings)


def test_guidance_belongs_into_the_levels():
    small, large = labelled(3), labelled(3, 8)
    ladder = PredictorLadder([small, large])
    with pytest.raises(ValueError, match="load_network"):
        ladder.term(guidance=2.0)
    guided = [
        dataclasses.replace(level, network=Guided(randomised(level.network, seed=k), 2.0, 3))
        for k, level in enumerate((small, large))
    ]
    found = PredictorLadder(guided)
    assert found.classes == 3
    # Both branches are counted, but for what comes before the label.
    assert found.level_costs()[0] > 1.4 * ladder.level_costs()[0]


@pytest.mark.slow
def test_a_trained_ladder_is_one_of_predictors(tmp_path):
    """Calibrations, which belong to levels, serve both."""
    networks = tuple(randomised(n, seed=k) for k, n in enumerate(TINY.networks()))
    trained = Ladder(networks, TINY, {}, {})
    found = calibrate_ladder(trained, steps=8, pilots=4, progress=False)
    same = PredictorLadder(trained.predictors()).with_calibrations({"ode": found})
    assert same.plan(budget=3).levels_id == found.measurements.levels_id
    assert ml.Calibration is type(found)
