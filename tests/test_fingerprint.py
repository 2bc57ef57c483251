"""Fingerprints tell apart all that computes something else, and are the same in every process."""

import functools
import os
import subprocess
import sys

import equinox as eqx
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from mlem_jax._fingerprint import fingerprint, level_id
from mlem_jax.diffusion import EDM, load_ladder, NoisePredictor

SCALE = 1.0


def predictor(network, conditioning="sigma"):
    return NoisePredictor(network, EDM(), "x0", conditioning=conditioning)


def closure(a):
    return lambda x, c: a * x


def default(a):
    return lambda x, c, a=a: a * x


def nested(a):
    inner = closure(a)
    return lambda x, c: inner(x, c)


def method(a):
    class Holder:
        def __init__(self):
            self.a = a

        def network(self, x, c):
            return self.a * x

    return Holder().network


def callable_object(a):
    class Network:
        def __init__(self):
            self.layers = {"first": [a]}

        def __call__(self, x, c):
            return self.layers["first"][0] * x

    return Network()


def linen(a):
    class Net(flax.linen.Module):
        scale: float

        def __call__(self, x, c):
            return self.scale * x

    return eqx.Partial(Net(a).apply, {})


def nnx(a):
    class Net(flax.nnx.Module):
        def __init__(self):
            self.scale = flax.nnx.Param(jnp.asarray(a))

        def __call__(self, x, c):
            return self.scale[...] * x

    return Net()


MAKERS = {
    "number in a closure": closure,
    "array in a closure": lambda a: closure(jnp.asarray(a)),
    "default": default,
    "closure of a closure": nested,
    "partial": lambda a: functools.partial(lambda a, x, c: a * x, a),
    "jitted": lambda a: jax.jit(closure(a)),
    "mapped": lambda a: jax.vmap(closure(a), in_axes=(0, None)),
    "checkpointed": lambda a: jax.checkpoint(closure(a)),
    "bound method": method,
    "callable object": callable_object,
    "equinox Partial": lambda a: eqx.Partial(lambda a, x, c: a * x, a),
    "random key": lambda a: eqx.Partial(lambda k, x, c: x, jr.key(int(a))),
    "linen": linen,
    "nnx": nnx,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
@pytest.mark.parametrize("text_of", [fingerprint, level_id])
def test_networks_that_compute_something_else_are_told_apart(make, text_of):
    one, same, other = (text_of(predictor(make(a))) for a in (1.0, 1.0, 2.0))
    assert one == same != other


@pytest.mark.parametrize("text_of", [fingerprint, level_id])
def test_the_code_of_a_function_and_its_globals_count(text_of, monkeypatch):
    networks = [lambda x, c: x + c, lambda x, c: x - c, lambda x, c: 2 * x, lambda x, c: 3 * x]
    assert len({text_of(predictor(network)) for network in networks}) == 4
    conditioning = [lambda s: 999 * s, lambda s: 1 * s]
    assert len({text_of(predictor(jnp.tanh, function)) for function in conditioning}) == 2

    def scaled(x, c):
        return SCALE * x

    before = text_of(scaled)
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert text_of(scaled) != before


def local_class(a):
    class Network(eqx.Module):
        weight: jax.Array

        def __call__(self, x, c):
            return a * self.weight * x

    return Network(jnp.ones(2))


def test_the_code_of_a_class_counts_for_samples():
    one, same, other = (fingerprint(predictor(local_class(a))) for a in (1, 1, 2))
    assert one == same != other


def test_shapes_dtypes_and_structure_count_for_samples():
    a = np.arange(4, dtype=np.int32)
    trees = [
        a,
        a.reshape(2, 2),
        a.view(np.uint32),
        [a],
        (a,),
        {"a": a},
        {"b": a},
        [a, None],
        [a[:2], a[2:]],
        None,
        [],
    ]
    assert len({fingerprint(tree) for tree in trees}) == len(trees)
    assert fingerprint({"a": a, "b": 1}) == fingerprint({"b": 1, "a": jnp.asarray(a)})


def test_what_has_no_content_is_refused_and_cycles_end():
    with pytest.raises(TypeError, match=r"type _thread\.lock has no content that can be compared"):
        fingerprint(predictor(closure(__import__("threading").Lock())))
    loop = callable_object(1.0)
    loop.layers["itself"] = loop
    assert fingerprint(loop) != fingerprint(callable_object(1.0))


def test_ids_in_the_shipped_calibrations_are_those_of_the_shipped_levels():
    ladder = load_ladder()
    assert ladder.calibrations
    for kind, calibration in ladder.calibrations.items():
        levels = ladder.term(sde=kind.startswith("sde")).levels
        assert calibration.measurements.levels_id == tuple(level_id(level) for level in levels)


PROGRAM = """
import jax, jax.numpy as jnp
from mlem_jax._fingerprint import fingerprint, level_id
from mlem_jax.diffusion import EDM, NoisePredictor
a, table = {"x", "y", "z"} and 2.0, {"one": jnp.ones(2)}
class Net:
    def __call__(self, x, c):
        return jax.nn.silu(a * x) + table["one"]
level = NoisePredictor(Net(), EDM(), "x0", lambda s: a * s)
print(fingerprint(level), level_id(level), object())
"""


@pytest.mark.slow
def test_fingerprints_are_the_same_in_every_process():
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        found.add(" ".join(done.stdout.split()[:2]))
    assert len(found) == 1
