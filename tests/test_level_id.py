"""What a calibration belongs to: levels of the same types, settings and numbers, in any process."""

import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from diffusion_problems import stand_in, TINY

from mlem_jax._fingerprint import level_id
from mlem_jax.diffusion import (
    EDM,
    FlowMatching,
    Ladder,
    NoisePredictor,
    ProbabilityFlow,
    VarianceExploding,
    VariancePreserving,
)


class Level(eqx.Module):
    weight: jax.Array
    power: int = eqx.field(static=True, default=2)
    name: str | None = eqx.field(static=True, default=None)

    def __call__(self, t, y, args):
        return self.weight * y**self.power


class Older(eqx.Module):
    """`Level` before it had its last two settings."""

    weight: jax.Array


Older.__qualname__ = "Level"
WEIGHT = jnp.arange(3.0)


def test_settings_and_numbers_are_told_apart():
    levels = [Level(WEIGHT), Level(WEIGHT, 3), Level(WEIGHT, name="a"), Level(WEIGHT + 1), Older(WEIGHT + 2)]
    assert len({level_id(level) for level in levels}) == len(levels)
    assert level_id(Level(WEIGHT, 2)) == level_id(Level(WEIGHT))


def test_a_setting_that_came_later_leaves_ids_as_they_were():
    assert level_id(Older(WEIGHT)) == level_id(Level(WEIGHT))


def test_a_prediction_and_a_process_are_settings():
    network = TINY.networks()[0]
    cases = [(VariancePreserving(), p) for p in ("v", "eps", "x0")]
    cases += [(VariancePreserving(betas=(0.1, 20.0)), "v"), (VariancePreserving(s_max=70.0), "v")]
    # The same numbers in fields of the same names.
    cases += [(VarianceExploding(), "v"), (FlowMatching(), "v"), (EDM(s_min=0.01), "v")]
    ids = {level_id(ProbabilityFlow(NoisePredictor(network, *case))) for case in cases}
    ids.add(level_id(ProbabilityFlow(NoisePredictor(network, VariancePreserving(), "v", "sigma"))))
    assert len(ids) == len(cases) + 1


def test_functions_are_told_apart_by_name():
    def one(w, t, y, args):
        return w * y

    def two(w, t, y, args):
        return w + y

    assert level_id(one) != level_id(two)
    assert level_id(eqx.Partial(one, WEIGHT)) != level_id(eqx.Partial(two, WEIGHT))
    assert level_id(eqx.Partial(one, WEIGHT)) != level_id(eqx.Partial(one, WEIGHT + 1))


def test_a_calibration_for_another_prediction_is_refused():
    ladder = Ladder(TINY.networks(), TINY, {}, {})
    found = stand_in(ladder)
    found.require(ladder.term().levels, jnp.zeros(TINY.shape))
    others = [ProbabilityFlow(NoisePredictor(network, TINY.process, "eps")) for network in ladder.networks]
    with pytest.raises(ValueError, match="number 1, 2 differ"):
        found.require(tuple(others), jnp.zeros(TINY.shape))


PROGRAM = """
import jax
from mlem_jax._fingerprint import level_id
from mlem_jax.diffusion import NoisePredictor, EDM, ProbabilityFlow
print(level_id(ProbabilityFlow(NoisePredictor(jax.nn.silu, EDM(), "x0", lambda s: s))), object())
"""


@pytest.mark.slow
def test_the_id_is_the_same_in_every_process():
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        found.add(done.stdout.split()[0])
    assert len(found) == 1
