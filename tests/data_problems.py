"""Files of pictures for the tests of `load_data`."""

import numpy as np
from PIL import Image
from problems import as_user

from mlem_jax.diffusion import load_data

RNG = np.random.default_rng(0)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def load(path, shape, **settings):
    # As a user: run-time type checks would speak before the messages that are tested.
    with as_user():
        return load_data(path, shape, progress=False, **settings)


def all_of(data):
    """Every image, as sorted tuples: what there is, whatever the order."""
    return sorted(tuple(x.ravel()) for part in (data.images, data.held_out) for x in np.asarray(part))
