"""What the test files of `mlem_jax.diffusion` share: tiny networks, images and configurations that train in
a second or two, and IDX files written by the test itself."""

import dataclasses
import gzip

import equinox as eqx
import jax
import jax.random as jr
import numpy as np

import mlem_jax as ml
from mlem_jax._fingerprint import level_id, state_id
from mlem_jax.diffusion import Config, Ladder, Level, Training

# On 4 x 4 images one fold leaves a 1 x 1 grid: a dense network, which compiles in a second.
TINY = Config(
    name="tiny",
    shape=(4, 4, 1),
    levels=(
        Level(width=4, folds=(4,), multipliers=(1,), blocks=(1,)),
        Level(width=8, folds=(4,), multipliers=(1,), blocks=(1,)),
    ),
    training=Training(steps=20, match_steps=20, batch_size=8, warmup_steps=5),
)


def tiny_config(**training):
    """`TINY` with other training settings."""
    return dataclasses.replace(TINY, training=dataclasses.replace(TINY.training, **training))


def tiny_images(count=32, *, seed=0):
    """Images that a dense network can learn: one gradient of random direction and sign each."""
    direction = np.random.default_rng(seed).uniform(-1, 1, (count, 2, 1, 1))
    ramp = np.linspace(-1, 1, 4)
    images = direction[:, 0] * ramp[:, None] + direction[:, 1] * ramp[None, :]
    return (images / 2)[..., None].astype(np.float32)


def randomised(network, *, seed=0):
    """The network with noise on every parameter, so that no block is the identity any more."""
    leaves, structure = jax.tree.flatten(network, is_leaf=eqx.is_array)
    keys = jr.split(jr.key(seed), len(leaves))
    noisy = [x + 0.3 * jr.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, noisy)


def arrays(network):
    """All parameters of a network, or of several, as one flat numpy vector."""
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(eqx.filter(network, eqx.is_array))])


def stand_in(ladder, *, sde=False, guidance=None, **settings):
    """A calibration of these levels that measured nothing: a real one compiles for half a minute, and has its
    own tests."""
    num_levels = len(ladder.networks)
    numbers = np.random.default_rng(sde).uniform(1, 2, (8, num_levels, 3, 1))
    measured = ml.Measurements(
        ts=np.asarray(ladder.config.process.grid(8), float),
        increment_rms=numbers[:, :, 0, 0],
        effects=numbers.astype(np.float32),
        costs=np.linspace(0.1, 1.0, num_levels),
        seconds=np.linspace(0.01, 0.1, num_levels),
        single_steps=np.array([4, 8]),
        single_error=np.ones((num_levels, 2)),
        single_uncertainty=np.full((num_levels, 2), 0.1),
        batch=3,
        device="cpu",
        levels_id=tuple(level_id(level) for level in ladder.term(sde=sde, guidance=guidance).levels),
        state_id=state_id(np.zeros(ladder.config.shape)),
    )
    tried = ml.Trials(
        coins=("StratifiedCoins",),
        budget=np.array([2.0]),
        predicted=np.array([0.1]),
        measured=np.array([0.2]),
        uncertainty=np.array([0.1]),
    )
    return ml.Calibration(measured, tried)


def catalogue(calibration, entries):
    """Classical steps that pretend to be fitted: levels, evaluations, and an error that all pilots have."""
    levels, counts, errors = zip(*entries, strict=True)
    tables = []
    for kept, evaluations in zip(levels, counts, strict=True):
        evaluated = tuple(tuple(range(n)) for n in evaluations[1:])
        ts = np.geomspace(80.0, 0.01, max(evaluations) + 1)
        tables.append(
            ml.MultistepCoefficients.adams_bashforth(
                ts, time_variable="log", num_levels=len(kept), evaluated=evaluated
            )
        )
    measured = calibration.measurements
    return ml.FittedSteps(
        costs=measured.costs,
        seconds=measured.seconds,
        batch=measured.batch,
        device=measured.device,
        levels=levels,
        coefficients=tuple(tables),
        errors=np.array(errors)[:, None] * np.ones(8),
        fitted=(True,) * len(levels),
        levels_id=measured.levels_id,
        state_id=measured.state_id,
    )


def calibrated_ladder():
    """Two levels that are not the identity, with stand-ins for calibrations; their parameters are not half-precision
    numbers."""
    networks = tuple(randomised(n, seed=k) for k, n in enumerate(TINY.networks()))
    bare = Ladder(networks, TINY, {"name": "tiny"}, {})
    return dataclasses.replace(bare, calibrations={"ode": stand_in(bare), "sde": stand_in(bare, sde=True)})


def idx_bytes(images, *, magic=2051):
    """The content of an IDX file of `(n, h, w)` images of bytes."""
    header = b"".join(int(n).to_bytes(4, "big") for n in (magic, *images.shape))
    return header + images.astype(np.uint8).tobytes()


def write_idx_labels(folder, labels, *, train=True):
    """Writes MNIST's label file for one half of a data set into a folder; returns its path."""
    path = folder / f"{'train' if train else 't10k'}-labels-idx1-ubyte.gz"
    header = b"".join(int(n).to_bytes(4, "big") for n in (2049, len(labels)))
    path.write_bytes(gzip.compress(header + np.asarray(labels, np.uint8).tobytes()))
    return path


def write_idx(folder, images, *, train=True, compress=True):
    """Writes MNIST's image file for one half of a data set into a folder; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{'train' if train else 't10k'}-images-idx3-ubyte{'.gz' if compress else ''}"
    content = idx_bytes(images)
    path.write_bytes(gzip.compress(content) if compress else content)
    return path
