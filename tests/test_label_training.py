"""Training with labels: how often they are dropped, what they teach, stopped runs, bfloat16, and the command."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import orbax.checkpoint as ocp
import pytest
from diffusion_problems import arrays, randomised, stand_in, write_idx, write_idx_labels
from label_problems import CLASSES, command, config, data, TEXT, train
from problems import as_user, assert_mean

from mlem_jax.diffusion import (
    load_ladder,
    train_ladder,
)
from mlem_jax.diffusion._training.batches import drop_labels


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in bfloat16 that nobody stopped."""
    return train(tmp_path_factory.mktemp("whole"), precision="bfloat16")


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_ladder_with_classes_and_two_kinds_of_network_by_commands(tmp_path, monkeypatch):
    monkeypatch.setattr("mlem_jax.diffusion._training.train_ladder.calibrate_ladder", stand_in)
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
