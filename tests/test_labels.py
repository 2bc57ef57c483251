"""Ladders with classes: dropped labels, training that is continued, guided sampling that stays lazy, calibration with
a label for each pilot, and the commands."""

import dataclasses

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import orbax.checkpoint as ocp
import pytest
from diffusion_problems import arrays, randomised, stand_in, TINY, write_idx, write_idx_labels
from problems import as_user, assert_mean
from sampling_problems import made_plan
from typer.testing import CliRunner

import mlem_jax as ml
from mlem_jax import _cli, _cli_sample
from mlem_jax.diffusion import calibrate_ladder, Ladder, load_ladder, sample, save_ladder, train_ladder
from mlem_jax.diffusion._batches import drop_labels
from mlem_jax.diffusion._ladder import as_stored
from mlem_jax.diffusion._train import train_networks

CLASSES = 3
TEXT = """
name = "tiny"
shape = [4, 4, 1]
classes = 3
[training]
steps = 3
match_steps = 3
batch_size = 8
warmup_steps = 1
precision = "bfloat16"
[[levels]]
width = 4
folds = [4]
multipliers = [1]
blocks = [1]
[[levels]]
kind = "dit"
width = 8
patch = 2
depth = 1
heads = 2
"""


def config(**training):
    settings = dataclasses.replace(TINY.training, **training)
    return dataclasses.replace(TINY, training=settings, classes=CLASSES)


def data(count=24):
    """Images that are grey, as bright as their label says."""
    labels = np.arange(count) % CLASSES
    return np.broadcast_to((labels - 1)[:, None, None, None], (count, 4, 4, 1)).astype(np.float32), labels


def train(folder, *, teacher=None, steps=12, **training):
    """The smaller level after a few steps, and its losses."""
    images, labels = data()
    settings = config(**training)
    (found,), history = train_networks(
        settings,
        settings.networks()[:1],
        images,
        folder,
        labels=labels,
        steps=steps,
        peak_learning_rate=1e-2,
        teacher=teacher,
        save_every=4,
        progress=False,
    )
    return found, history


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in bfloat16 that nobody stopped."""
    return train(tmp_path_factory.mktemp("whole"), precision="bfloat16")


# Training.


def test_labels_are_dropped_as_often_as_told():
    """z-test at 5 standard errors, n = 40,000, seed 5."""
    labels = jnp.arange(40_000) % CLASSES
    dropped = drop_labels(labels, CLASSES, 0.1, jr.key(5))
    gone = dropped == CLASSES
    assert_mean(gone, 0.1)
    np.testing.assert_array_equal(dropped[~gone], labels[~gone])
    # Whatever the label.
    for k in range(CLASSES):
        assert_mean(gone[labels == k], 0.1)


@pytest.mark.parametrize("rate, teaching", [(1.0, False), (0.0, True)], ids=["data, all", "matching, none"])
def test_a_row_of_the_table_is_learned_from_the_images_that_have_its_label(tmp_path, rate, teaching):
    small, large = config().networks()
    # Without averages, so that a row that is not learned stays as it was to the bit.
    network, _ = train(
        tmp_path,
        steps=3,
        teacher=randomised(large) if teaching else None,
        label_dropout=rate,
        ema_decay=0.0,
    )
    learned = jnp.any(network.embedding.labels != small.embedding.labels, axis=1)
    np.testing.assert_array_equal(learned, [rate == 0.0] * CLASSES + [rate == 1.0])


def test_a_stopped_run_with_labels_ends_where_a_whole_one_does(tmp_path, monkeypatch, whole):
    save = ocp.CheckpointManager.save

    def stop(self, step, *args, **settings):
        if step > 4:
            raise KeyboardInterrupt
        return save(self, step, *args, **settings)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ocp.CheckpointManager, "save", stop)
        train(tmp_path, precision="bfloat16")
    continued, history = train(tmp_path, precision="bfloat16")
    np.testing.assert_array_equal(arrays(continued), arrays(whole[0]))
    np.testing.assert_array_equal(history, whole[1])
    for other, message in (
        (dict(), "precision .there bfloat16, now float32."),
        (dict(precision="bfloat16", label_dropout=0.5), "label_dropout .there 0.1, now 0.5."),
    ):
        with pytest.raises(ValueError, match=f"holds a run that differs in {message}"):
            train(tmp_path, **other)


def test_bfloat16_training_is_near_to_float32_and_keeps_wide_parameters(tmp_path, whole):
    network, history = train(tmp_path)
    assert np.any(history != whole[1])
    np.testing.assert_allclose(history, whole[1], rtol=0.02)
    assert arrays(whole[0]).dtype == whole[1].dtype == np.float32
    # Nearer to each other than to the beginning.
    begun = arrays(config().networks()[0])
    assert np.linalg.norm(arrays(network) - arrays(whole[0])) < 0.3 * np.linalg.norm(arrays(network) - begun)


@pytest.mark.parametrize(
    "classes, labels, message",
    [
        (None, [0, 1] * 12, r"configuration has no classes. Write classes = 2 at the top"),
        (3, None, r"classes = 3, and no labels were given for the images. Pass them, .*load_labels"),
        (3, [0, 1], r"labels of the images are an array of shape \(2,\) .*shape \(24,\), one per image"),
        (3, [0.0] * 24, r"shape \(24,\) and type float64; integers"),
        (3, [3] * 24, r"go from 3 to 3; with classes = 3 they are expected from 0 to 2"),
    ],
    ids=["no classes", "no labels", "too few", "not integers", "out of range"],
)
def test_labels_that_do_not_fit_are_refused_before_anything_is_begun(tmp_path, classes, labels, message):
    path, images = tmp_path / "ladder.toml", data()[0]
    path.write_text(TEXT if classes else TEXT.replace("classes = 3\n", ""))
    given = None if labels is None else np.array(labels)
    with as_user(), pytest.raises(ValueError, match=message):
        train_ladder(path, tmp_path / "out", images, images, labels=given, held_out_labels=given)
    assert not (tmp_path / "out").exists()


# Sampling and calibration.


@pytest.fixture(scope="module")
def ladder(whole):
    """A network trained a few steps and one that was not, both pushed so that labels matter."""
    networks = (whole[0], config().networks()[1])
    networks = tuple(as_stored(randomised(n, seed=k)) for k, n in enumerate(networks))
    bare = Ladder(networks, config(), {"name": "tiny"}, {})
    found = {"ode": stand_in(bare), "sde": stand_in(bare, sde=True)}
    return dataclasses.replace(bare, calibrations=found)


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


def test_every_pilot_of_a_calibration_has_its_own_label():
    labels = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])
    found = measured(labels=labels)
    # Of both levels: the root mean square of the labels, at every step, and pilot by pilot.
    np.testing.assert_allclose(found.increment, np.sqrt(np.mean(np.square(labels))), rtol=1e-5)
    for kicks in np.moveaxis(found.kicks, 2, 3).reshape(-1, 5):
        np.testing.assert_allclose(np.abs(kicks), labels, rtol=1e-5)
    # The trajectories too are the pilots' own: Euler on the cheaper level alone ends half as far.
    np.testing.assert_allclose(found.single_error[0], found.increment[0, 0], rtol=1e-4)
    with pytest.raises(
        ValueError, match="Give args, the same for all pilots, or labels, one for each; not both"
    ):
        measured(labels=labels, args=1.0)
    with pytest.raises(
        ValueError, match=r"labels has an array of shape \(4,\) for 5 pilots.*shape \(5, ...\)"
    ):
        measured(labels=labels[:4])


def test_pilots_of_a_ladder_have_labels_drawn_uniformly(ladder, monkeypatch):
    """z-test at 5 standard errors, n = 4,000, the ladder's own seed."""
    asked = []
    monkeypatch.setattr(
        "mlem_jax.diffusion._ladder.calibrate", lambda *a, **settings: asked.append((a, settings))
    )
    with as_user():
        calibrate_ladder(ladder, pilots=4_000, guidance=2.0, sde=True)
    ((terms, _, y0s), settings) = asked[0]
    for k in range(CLASSES):
        assert_mean(settings["labels"] == k, 1 / CLASSES)
    assert settings["labels"].shape == y0s.shape[:1]
    assert terms.term.levels[0].predictor.network.scale == 2.0


# Commands.


def command(*arguments):
    return CliRunner().invoke(_cli.app, list(map(str, arguments)), env={"COLUMNS": "300"})


def test_a_ladder_with_classes_and_two_kinds_of_network_by_commands(tmp_path, monkeypatch):
    monkeypatch.setattr("mlem_jax.diffusion._train_ladder.calibrate_ladder", stand_in)
    config, folder = tmp_path / "ladder.toml", tmp_path / "data"
    config.write_text(TEXT)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 4, 4))
    for part in (True, False):
        write_idx(folder, pixels, train=part)
        write_idx_labels(folder, np.arange(12) % CLASSES, train=part)
    common = ("train", "--config", config, "--data", folder)
    result = command(*common, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    # Sizes are said before training, and the measured ones agree.
    sizes, trained = result.output.split("held-out loss")
    assert "relative cost" in sizes and "UNet" in sizes and "DiT" in sizes
    ladder = load_ladder(tmp_path / "run" / "ladder")
    assert ladder.config.classes == CLASSES
    assert all(f"{count:,}" in part for count in ladder.card["parameters"] for part in (sizes, trained))
    write_idx_labels(folder, np.arange(12))
    wrong = command(*common, "--out", tmp_path / "other")
    assert wrong.exit_code == 2 and "go from 0 to 11; with classes = 3" in wrong.output


def test_labels_and_guidance_by_commands(ladder, tmp_path, monkeypatch):
    one = TEXT.split("[[levels]]")[1]
    text = (
        TEXT.split("[training]")[0]
        + "[training]\nsteps = 20\nmatch_steps = 20\nbatch_size = 8\nwarmup_steps = 5\n"
    )
    save_ladder(tmp_path / "l", ladder, text + "".join(f"[[levels]]{one.replace('4', w, 1)}" for w in "48"))
    asked = []

    def pretend(ladder, **settings):
        asked.append(settings["guidance"])
        return stand_in(ladder, sde=settings["sde"], guidance=settings["guidance"])

    monkeypatch.setattr(_cli_sample, "calibrate_ladder", pretend)
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
    assert "--guidance 1 --guidance 3" in line
    drawing = line.removeprefix("Draw with it: python -m mlem_jax ").replace("FOLDER", str(tmp_path / "out"))
    drawn = command(*drawing.split(), "--n", 4, "--budget", 3)
    assert drawn.exit_code == 0, drawn.output
    with np.load(tmp_path / "out" / "samples.npz") as file:
        assert file["images"].shape == (4, 4, 4, 1)
    common = ("sample", "--checkpoint", tmp_path / "l", "--out", tmp_path / "no", "--n", 2, "--budget", 3)
    for arguments, message in (
        (("--label", 4), "ladder with 3 classes was given labels from 4 to 4"),
        (("--guidance", 3), "saved with is without guidance. Measure one with 'python -m mlem_jax calibrate"),
        (("--guidance", 2, "--calibration", tmp_path / "c.npz"), "Calibrate again"),
    ):
        result = command(*common, *arguments)
        assert result.exit_code == 2 and message in result.output, result.output
    shipped = command("sample", "--out", tmp_path / "no", "--label", 1)
    assert shipped.exit_code == 2 and "--label is for a ladder with classes" in shipped.output
