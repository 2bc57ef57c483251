"""What the tests of sampling share: plans made by hand, levels with known solutions, and, run as a program, the
other processes of a test.

    python tests/sampling_problems.py devices FILE
    python tests/sampling_problems.py slowly FOLDER
    python tests/sampling_problems.py host FOLDER PORT INDEX
"""

import os
import sys
import time
from pathlib import Path

if __name__ == "__main__" and sys.argv[1] == "devices":
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import mlem_jax as ml
from mlem_jax.diffusion import EDM, NoisePredictor, sample
from mlem_jax.diffusion._sampling import batches as _batches, sample as _sample

SHAPE = (3,)
PROCESS = EDM(s_min=0.1, s_max=10.0)


def made_plan(*, levels=(0, 1), p=0.4, steps=12, coins=None, process=PROCESS):
    """A plan that looks at each level but the first with probability `p`, about which nothing was measured."""
    table = np.full((steps, len(levels)), p)
    table[:, 0] = 1
    return ml.Plan(
        ts=np.asarray(process.grid(steps), float),
        levels=levels,
        table=table,
        coins=ml.IndependentCoins() if coins is None else coins,
        method=ml.EulerMaruyama(),
        costs=np.geomspace(0.1, 1, len(levels)),
        cost=1.0,
        error=1.0,
        discretisation=1.0,
        coin_error=0.0,
        relative_error_of_prediction=0.0,
        nonlinearity=1.0,
        speedup_over_finest=1.0,
        speedup_over_single=1.0,
        finest_error=None,
        advice=(),
    )


class Network(eqx.Module):
    """A small network that keeps samples apart."""

    weight: jax.Array

    def __call__(self, x, s, label=None):
        push = 0 if label is None else label
        return jnp.tanh(x / (1 + s) @ self.weight + push)


def networks():
    """Two levels, the first of which is a little wrong."""
    weight = jr.normal(jr.key(1), (3, 3))
    return [NoisePredictor(Network(w), PROCESS, "eps", "sigma") for w in (0.5 * weight, weight)]


def constant(*values):
    """Levels whose predicted noise is constant: the flow moves by that times the change of `s`."""
    return [
        NoisePredictor(eqx.Partial(lambda value, x, s: jnp.full_like(x, value), v), PROCESS, "eps")
        for v in values
    ]


def draw(n=20, **settings):
    """Samples of the networks, by random coins in groups of 8, with the noise of the reverse SDE."""
    settings = {"plan": made_plan(), "key": jr.key(7), "stochasticity": 1.0, "coin_group": 8, **settings}
    return sample(networks(), n=n, shape=SHAPE, progress=False, **settings)


def _devices(file):
    devices, texts = jax.devices(), []
    assert len(devices) == 8
    program = _batches.draw

    def inspected(*arguments):
        compiled = program.lower(*arguments).compile()
        texts.append(compiled.compiled.as_text())
        return compiled(*arguments)

    found = {"1": draw(20, batch_size=4, devices=devices[:1]).images}
    # Five batches on two devices: in the last round one of them repeats the other's.
    pairs = []

    def report(step, s, states, indices):
        pairs.extend((step, index) for index in indices)

    found["2"] = draw(20, batch_size=4, devices=devices[:2], callback=report).images
    found["reported"] = np.array(sorted(pairs))
    _batches.draw = inspected
    found["8"] = draw(20, batch_size=4, devices=devices).images
    np.savez(file, hlo=np.array(texts[-1]), **found)


def _slowly(folder):
    add = _sample.RunFolder.add

    def slow(self, *batch):
        add(self, *batch)
        time.sleep(0.5)

    _sample.RunFolder.add = slow
    draw(40, batch_size=4, out=folder)


def _host(folder, port, index):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(index))
    assert jax.process_count() == 2 and len(jax.devices()) == 2
    found = draw(20, batch_size=4, out=folder)
    np.savez(Path(folder).with_name(f"host{index}.npz"), indices=found.indices, images=found.images)


if __name__ == "__main__":
    {"devices": _devices, "slowly": _slowly, "host": _host}[sys.argv[1]](*sys.argv[2:])
