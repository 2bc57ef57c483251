"""What the tests of labels share: a tiny configuration with classes, images that are their labels, and a short
training."""

import dataclasses

import numpy as np
from diffusion_problems import TINY
from typer.testing import CliRunner

from mlem_jax._cli import app as _cli
from mlem_jax.diffusion._training import train_networks

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
    ((found,),), history = train_networks(
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


def command(*arguments):
    return CliRunner().invoke(_cli.app, list(map(str, arguments)), env={"COLUMNS": "300"})
