"""Options of the training: mirrored images, batches in parts, averages, and what is kept on the way."""

import importlib.util
import struct

import numpy as np
import pytest
from diffusion_problems import arrays, tiny_config, tiny_images
from problems import as_user

from mlem_jax.diffusion import load_ladder, train_ladder, Training
from mlem_jax.diffusion._training import train_networks
from mlem_jax.diffusion._training.batches import mirrored


def train(folder, images, **training):
    config = tiny_config(**training)
    (found,), history = train_networks(
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


@pytest.mark.slow
def test_a_batch_in_parts_is_the_same_step(tmp_path):
    """Means of gradients over parts are those of the whole, but for rounding."""
    (whole, losses), (parts, partial) = (
        train(tmp_path / str(k), tiny_images(), accumulate=k) for k in (1, 4)
    )
    np.testing.assert_allclose(partial, losses, rtol=1e-5)
    np.testing.assert_allclose(parts, whole, atol=2e-5)


@pytest.mark.slow
def test_averages_of_several_decays_are_those_of_each_alone(tmp_path):
    """A decay of 0.2 is reached in the third of 6 steps, one of 0.9 never."""
    config = tiny_config(ema_decay=0.9, more_ema_decays=(0.2,))
    settings = {"steps": 6, "peak_learning_rate": 1e-2, "progress": False}
    both, _ = train_networks(config, config.networks()[:1], tiny_images(), tmp_path / "both", **settings)
    for decay, networks in zip((0.9, 0.2), both, strict=True):
        alone, _ = train(tmp_path / str(decay), tiny_images(), ema_decay=decay)
        np.testing.assert_array_equal(arrays(networks), alone)
    assert np.any(arrays(both[0]) != arrays(both[1]))


def events(folder):
    """The scalars of the event files in a folder, by tag and step, and the number of pictures."""
    from tensorboardX.proto.event_pb2 import Event

    scalars, pictures = {}, 0
    for file in sorted(folder.iterdir()):
        data, place = file.read_bytes(), 0
        while place < len(data):
            # A record is its length, a checksum of that, the event, and its checksum.
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += length + 16
            for value in event.summary.value:
                if value.HasField("image"):
                    pictures += 1
                else:
                    scalars[value.tag, event.step] = value.simple_value
    return scalars, pictures


@pytest.mark.slow
def test_what_is_kept_on_the_way(tmp_path):
    """Snapshots of each decay: those of the last step are the ladders' own levels, rounded as these are; those before
    differ. TensorBoard has what the CSV files have."""
    wanted = {"sheet_every": 2, "snapshots": True, "tensorboard": True, "more_ema_decays": (0.0,)}
    config = tiny_config(steps=4, match_steps=4, **wanted)
    images, run = tiny_images(), tmp_path / "run"
    ladder = train_ladder(config, run, images, images[:4], pilots=0, progress=False)
    ladders = {"": ladder, "-ema-0": load_ladder(run / "ladder-ema-0")}
    assert [found.config.training.ema_decay for found in ladders.values()] == [0.999, 0.0]
    names = {
        (stage, step, decay): f"{stage}-{step:08d}{decay}"
        for stage in ("finest", "smaller")
        for step in (2, 4)
        for decay in ladders
    }
    assert sorted(path.name for path in (run / "snapshots").iterdir()) == sorted(names.values())
    for (stage, step, decay), name in names.items():
        own = ladders[decay].networks[slice(-1, None) if stage == "finest" else slice(None, -1)]
        kept = load_ladder(run / "snapshots" / name)
        assert kept.config.training.ema_decay == (0.0 if decay else 0.999)
        assert np.array_equal(arrays(kept.networks), arrays(own)) == (step == 4), name
    losses = [line.split(",") for line in (run / "losses.csv").read_text().splitlines()[1:]]
    for stage, level in (("finest", 2), ("smaller", 1)):
        scalars, pictures = events(run / "tensorboard" / stage)
        (row,) = [line for line in losses if line[0] == stage]
        sheets = [line.split(",") for line in (run / "sheets" / f"{stage}.csv").read_text().splitlines()[1:]]
        expected = {(f"held_out_loss/level_{level}", int(step)): float(loss) for step, loss in sheets}
        expected[f"loss/level_{level}", 4] = float(row[1 + level])
        assert scalars == pytest.approx(expected, abs=1e-6) and pictures == 2


def test_a_missing_writer_is_named_before_anything_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    images = tiny_images()
    with pytest.raises(ModuleNotFoundError, match=r"tensorboardX.*pip install 'mlem_jax\[tensorboard\]'"):
        train_ladder(tiny_config(tensorboard=True), tmp_path / "run", images, images[:4])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate": 3}, "accumulate = 3 does not divide batch_size = 64"),
        ({"accumulate": 0}, "accumulate = 0; an integer of at least 1"),
        ({"flip": 1}, "flip = 1; true or false"),
        ({"snapshots": True}, "write sheet_every = 1000"),
        ({"tensorboard": "yes"}, "tensorboard = 'yes'; true or false"),
        ({"more_ema_decays": (0.9, 0.9)}, "different numbers in"),
        ({"more_ema_decays": (0.999,)}, "and not ema_decay = 0.999 again"),
        ({"more_ema_decays": (1.0,)}, r"numbers in \[0, 1\)"),
    ],
)
def test_bad_options_are_refused(settings, message):
    with as_user(), pytest.raises(ValueError, match=message):
        Training(**settings)
