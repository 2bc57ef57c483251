"""Cheaper levels for any network: what they learn, from data and from noise alone, and that a stopped run continues."""

import dataclasses
from types import SimpleNamespace

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import stand_in
from problems import as_user

from mlem_jax.diffusion import distil, EDM, NoisePredictor, PredictorLadder, Training
from mlem_jax.diffusion._training import distil as _distil, timed_sizes
from mlem_jax.diffusion._training.teacher import Teacher

SHAPE = (4, 4, 1)
# Standard deviation of the images: independent normal numbers.
SIZE = 0.5
QUICK = Training(
    match_steps=300, batch_size=32, match_learning_rate=3e-3, match_log_normal=(0.0, 1.5), label_dropout=0.0
)
MFLOPS = [0.002]


class Denoiser(eqx.Module):
    """The mean of a clean image, given it with noise, as an expensive network: `hidden` makes it so. With a label
    images are around 0 or around 1."""

    hidden: jnp.ndarray

    def __call__(self, x, sigma, label=None):
        mean = 0.0 if label is None else jnp.asarray(label, x.dtype)
        exact = mean + SIZE**2 / (SIZE**2 + sigma**2) * (x - mean)
        return exact + 0 * jnp.tanh(jnp.multiply.outer(x, self.hidden)).sum(axis=-1)


def teacher(width=2_000):
    process = EDM(s_min=0.02, s_max=20.0)
    return NoisePredictor(Denoiser(jnp.linspace(0, 1, width)), process, "x0", conditioning="sigma")


def test_a_teacher_answers_as_a_network_of_the_description():
    """v = alpha eps - sigma x0 of an image and noise that the exact denoiser tells apart."""
    whole = PredictorLadder([teacher()], shape=SHAPE)
    config = _distil._describe(whole, MFLOPS, "levels", QUICK)
    network = Teacher(teacher(), config)
    s, x = jnp.asarray([0.3, 2.0]), jr.normal(jr.key(0), (2, *SHAPE))
    alpha = 1 / np.sqrt(1 + np.asarray(s)[:, None, None, None] ** 2)
    y = np.asarray(x) / alpha
    clean = SIZE**2 / (SIZE**2 + np.asarray(s)[:, None, None, None] ** 2) * y
    noise = (y - clean) / np.asarray(s)[:, None, None, None]
    v = alpha * noise - np.asarray(s)[:, None, None, None] * alpha * clean
    np.testing.assert_allclose(network(x, jnp.log(s)), v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(network(x[1], jnp.log(s)[1]), v[1], rtol=1e-4, atol=1e-5)


SETTINGS = dict(shape=SHAPE, mflops=MFLOPS, samples=160, training=QUICK, progress=False)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distilled") / "levels"
    return folder, distil(teacher(), folder, pilots=0, **SETTINGS)


@pytest.mark.slow
def test_a_level_learns_a_network_from_noise_alone(found):
    """The network's v has a mean square of about 1: after 300 steps the level is within a few per cent of that. The
    samples that it learns from are those of the network, of deviation SIZE."""
    folder, distilled = found
    near = distilled.levels.card["held_out_loss"]["to_finest"]
    assert near[0] < 0.05 and near[1] == 0
    with np.load(folder / "samples" / "samples.npz") as file:
        images = file["images"]
    assert images.shape == (160, *SHAPE)
    # 2,560 normal numbers: a standard error of 1.4%.
    assert abs(images.std() / SIZE - 1) < 0.07
    costs = distilled.ladder.level_costs()
    assert abs(costs[0] / 1e6 / MFLOPS[0] - 1) < 0.3 and costs[1] > 10 * costs[0]
    # In evaluations of the network: 160 samples of 20 steps, and 300 steps of 32 images.
    for text in ("on its own samples, 160 images", "beside 3,200 for its own samples", "9,600"):
        assert text in str(distilled)
    # A step costs three evaluations of the level.
    assert distilled.levels.card["cost"]["levels"] == [pytest.approx(28_800 * costs[0] / costs[1], rel=0.1)]


def test_held_out_images_are_not_trained_on(tmp_path, monkeypatch):
    given = []

    def record(config, networks, images, *rest, **settings):
        given.append(images)
        raise InterruptedError

    monkeypatch.setattr(_distil, "train_networks", record)
    pictures = np.linspace(-1, 1, 160 * 16, dtype=np.float32).reshape(160, *SHAPE)
    with pytest.raises(InterruptedError):
        distil(
            teacher(),
            tmp_path / "levels",
            images=pictures,
            shape=SHAPE,
            mflops=MFLOPS,
            training=QUICK,
            progress=False,
        )
    (images,) = given
    assert 100 < len(images) < 160
    np.testing.assert_array_equal(images, pictures[: len(images)])


def calibrated(ladder):
    """Stands in for a calibration, which takes half a minute to compile."""
    config = SimpleNamespace(process=ladder.process, shape=ladder.shape)
    known = SimpleNamespace(networks=ladder.predictors(), config=config, term=ladder.term)
    return ladder.with_calibrations({"ode": stand_in(known)})


@pytest.mark.slow
def test_the_same_call_again_returns_what_is_there(found, monkeypatch):
    folder, distilled = found
    monkeypatch.setattr(_distil, "train_networks", None)
    monkeypatch.setattr(_distil, "sample", None)
    unfinished = []

    def interrupted(ladder, keep_in, **settings):
        keep_in.mkdir()
        (keep_in / "part").write_text("")
        unfinished.append(keep_in)
        # As a call that is killed between its two files.
        calibrated(ladder).save_calibrations(folder / "calibrations")
        raise KeyboardInterrupt

    def continued(ladder, keep_in, **settings):
        assert unfinished == [keep_in] and (keep_in / "part").is_file()
        return calibrated(ladder)

    monkeypatch.setattr(_distil, "calibrate_methods", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distil(teacher(), folder, pilots=4, **SETTINGS)
    monkeypatch.setattr(_distil, "calibrate_methods", continued)
    again = distil(teacher(), folder, pilots=4, **SETTINGS)
    assert not unfinished[0].exists()
    x, s = jr.normal(jr.key(0), SHAPE), jnp.asarray(0.5)
    for before, after in zip(distilled.ladder.predictors(), again.ladder.predictors(), strict=True):
        np.testing.assert_array_equal(before(x, s), after(x, s))
    # Calibrations are measured once, and belong to the levels.
    monkeypatch.setattr(_distil, "calibrate_methods", None)
    kept = distil(teacher(), folder, pilots=4, **SETTINGS)
    assert kept.ladder.plan(budget=3).error == again.ladder.plan(budget=3).error
    assert "plan at 4 evaluations" in str(kept)
    with pytest.raises(ValueError, match="was begun with other data"):
        distil(teacher(2_001), folder, **SETTINGS)
    with pytest.raises(ValueError, match="was begun with another configuration"):
        distil(teacher(), folder, **{**SETTINGS, "mflops": [0.003]})


class Stopped(Exception):
    """In place of a kill."""


@pytest.mark.slow
def test_a_stopped_run_continues_to_the_same_numbers(found, tmp_path, monkeypatch):
    original = _distil.train_networks

    def stopping(config, *arguments, **named):
        def stop(done, networks):
            raise Stopped

        watched = dataclasses.replace(config, training=dataclasses.replace(config.training, sheet_every=140))
        return original(watched, *arguments, **named, watch=stop, save_every=50)

    with monkeypatch.context() as patch:
        patch.setattr(_distil, "train_networks", stopping)
        with pytest.raises(Stopped):
            distil(teacher(), tmp_path / "parts", pilots=0, **SETTINGS)
    assert not (tmp_path / "parts" / "ladder").exists() and (tmp_path / "parts" / "smaller").is_dir()
    continued = distil(teacher(), tmp_path / "parts", pilots=0, **SETTINGS)
    x, s = jr.normal(jr.key(0), SHAPE), jnp.asarray(0.5)
    pair = [whole.ladder.predictors()[0](x, s) for whole in (found[1], continued)]
    np.testing.assert_array_equal(*pair)


@pytest.mark.slow
def test_levels_learn_labels_from_data(tmp_path):
    """Images around 0 with label 0 and around 1 with label 1: at s = 1 the predicted noises of a level differ as the
    network's do, by the difference of the clean images' means."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 256)
    images = (labels[:, None, None, None] + SIZE * generator.standard_normal((256, *SHAPE))).astype(
        np.float32
    )
    distilled = distil(
        teacher(),
        tmp_path / "out",
        classes=2,
        mflops=MFLOPS,
        images=images,
        labels=labels,
        shape=SHAPE,
        training=QUICK,
        pilots=0,
        progress=False,
    )
    level, network = distilled.ladder.predictors()
    x, s = jnp.full(SHAPE, 0.3), jnp.asarray(1.0)
    gaps = [np.mean(p(x, s, jnp.asarray(1)) - p(x, s, jnp.asarray(0))) for p in (level, network)]
    assert abs(gaps[1] - -(1 - SIZE**2 / (SIZE**2 + 1))) < 1e-5
    assert abs(gaps[0] / gaps[1] - 1) < 0.2
    assert distilled.levels.card["cost"]["samples"] == 0


@pytest.mark.parametrize("power", [0.6, 1.0])
def test_a_level_of_given_seconds_is_found(power):
    """Seconds as a power of the FLOPs, which come in steps of 3% as widths do: within 10% from a guess 30 times off."""
    sizes = np.geomspace(1e-3, 1e3, 468)

    def measured(mflops):
        built = float(sizes[np.argmin(np.abs(np.log(sizes / mflops)))])
        return built, 1e-3 * built**power

    _, took = timed_sizes._nearest(measured, 2e-3, 30 * 2 ** (1 / power))
    assert abs(took / 2e-3 - 1) < 0.1

    def refused(mflops):
        raise ValueError("too small")

    with pytest.raises(ValueError, match="No level takes 0.002 seconds for an image here: too small"):
        timed_sizes._nearest(refused, 2e-3, 1.0)


def test_sizes_in_seconds_are_found_once(tmp_path, monkeypatch):
    """A continued run has the levels with which it was begun, however fast the machine is then."""
    whole = PredictorLadder([teacher()], shape=SHAPE)
    monkeypatch.setattr(timed_sizes, "seconds_per_image", lambda call, shape: 0.5)
    monkeypatch.setattr(timed_sizes, "_nearest", lambda measured, target, guess: (guess, target))
    found = timed_sizes.timed_sizes(whole, [0.1, 0.25], tmp_path)
    own = whole.level_costs()[0] / 1e6
    assert found["mflops"] == pytest.approx([0.2 * own, 0.5 * own])
    timed_sizes.remember_sizes(tmp_path, found)
    monkeypatch.setattr(timed_sizes, "_nearest", None)
    assert timed_sizes.timed_sizes(whole, [0.1, 0.25], tmp_path) == found
    with pytest.raises(ValueError, match=r"begun for levels of \[0.1, 0.25\] seconds"):
        timed_sizes.timed_sizes(whole, [0.1], tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mflops": [50.0]}, r"the network itself takes 0\.\d+ million FLOPs"),
        ({"mflops": [0.003, 0.001]}, "increasing positive numbers"),
        ({"mflops": None}, r"write mflops=\[1, 6\], say, or seconds"),
        ({"seconds": [0.1]}, "not both"),
        ({"mflops": None, "seconds": [0.2, 0.1]}, "increasing positive numbers are expected, such as 0.001"),
        ({"mflops": None, "seconds": [1e9]}, "the network itself takes"),
        ({"samples": 10}, "at least 64 are expected, two batches"),
        ({"images": np.zeros((64, 8, 8, 1), np.float32)}, r"images of shape \(8, 8, 1\) for a network"),
        ({"images": np.zeros((64, *SHAPE), np.float32), "labels": np.zeros(64, int)}, "has no classes"),
        ({"training": dataclasses.replace(QUICK, match_steps=0)}, "match_steps of at least 1"),
        ({"shape": (3,)}, r"arrays of shape \(3,\)"),
    ],
)
def test_what_cannot_be_distilled_is_refused_before_anything_is_written(tmp_path, changed, message):
    settings = {"shape": SHAPE, "mflops": MFLOPS, "training": QUICK, **changed}
    with as_user(), pytest.raises(ValueError, match=message):
        distil(teacher(), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
