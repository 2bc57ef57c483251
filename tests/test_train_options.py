"""Options of the training: mirrored images and batches in parts."""

import numpy as np
import pytest
from diffusion_problems import arrays, tiny_config, tiny_images
from problems import as_user

from mlem_jax.diffusion import load_ladder, train_ladder, Training
from mlem_jax.diffusion._training import train_networks
from mlem_jax.diffusion._training.batches import mirrored


def train(folder, images, **training):
    config = tiny_config(**training)
    found, history = train_networks(
        config, config.networks()[:1], images, folder, steps=6, peak_learning_rate=1e-2, progress=False
    )
    return arrays(found), history


def test_each_image_is_mirrored_with_probability_one_half():
    """A z-test at 5 standard errors: 4,000 images, seed 0."""
    images = np.random.default_rng(0).normal(size=(4_000, 2, 3, 1)).astype(np.float32)
    found = mirrored(images, 0, 7)
    same = np.all(found == images, axis=(1, 2, 3))
    turned = np.all(found[:, :, ::-1] == images, axis=(1, 2, 3))
    assert np.all(same ^ turned)
    assert abs(turned.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(images))
    np.testing.assert_array_equal(mirrored(images, 0, 7), found)
    assert np.any(mirrored(images, 0, 8) != found) and np.any(mirrored(images, 1, 7) != found)


@pytest.mark.slow
def test_flip_changes_training_unless_images_are_symmetric(tmp_path):
    images = tiny_images()
    symmetric = (images + images[:, :, ::-1]) / 2
    plain, flipped = (
        [train(tmp_path / f"{i}{flip}", data, flip=flip)[0] for i, data in enumerate((images, symmetric))]
        for flip in (False, True)
    )
    assert np.any(flipped[0] != plain[0])
    np.testing.assert_array_equal(flipped[1], plain[1])


def test_a_batch_in_parts_is_the_same_step(tmp_path):
    """Means of gradients over parts are those of the whole, but for rounding."""
    (whole, losses), (parts, partial) = (
        train(tmp_path / str(k), tiny_images(), accumulate=k) for k in (1, 4)
    )
    np.testing.assert_allclose(partial, losses, rtol=1e-5)
    np.testing.assert_allclose(parts, whole, atol=2e-5)


@pytest.mark.slow
def test_snapshots_are_the_networks_on_the_way(tmp_path):
    """That of the last step is the ladder's own level, rounded as it is; those before differ."""
    config = tiny_config(steps=4, match_steps=4, sheet_every=2, snapshots=True)
    images = tiny_images()
    ladder = train_ladder(config, tmp_path / "run", images, images[:4], pilots=0, progress=False)
    folder = tmp_path / "run" / "snapshots"
    names = [f"{stage}-{step:08d}" for stage in ("finest", "smaller") for step in (2, 4)]
    assert sorted(path.name for path in folder.iterdir()) == names
    for name, own in zip(names, [ladder.networks[-1:]] * 2 + [ladder.networks[:-1]] * 2, strict=True):
        kept = load_ladder(folder / name)
        assert len(kept.networks) == 1
        same = np.array_equal(arrays(kept.networks), arrays(own))
        assert same == name.endswith("4"), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate": 3}, "accumulate = 3 does not divide batch_size = 64"),
        ({"accumulate": 0}, "accumulate = 0; an integer of at least 1"),
        ({"flip": 1}, "flip = 1; true or false"),
        ({"snapshots": True}, "write sheet_every = 1000"),
    ],
)
def test_bad_options_are_refused(settings, message):
    with as_user(), pytest.raises(ValueError, match=message):
        Training(**settings)
