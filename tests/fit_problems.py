"""Pilots with small states on which coefficients and schedules of steps are fitted."""

import diffrax
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import mlem_jax as ml
from mlem_jax._calibration.fit_pilots import FitPilots
from mlem_jax._calibration.fit_rollout import Schedule

TS = np.linspace(0.5, 2.5, 65)
PLACES = (0, 6, 14, 24, 34, 48, 64)
COSTS = np.array([0.05, 0.3, 1.0])
TWO_LEVELS = Schedule(PLACES, 0, ((2,), (), (1, 2), (1,), (2,), ()))


def cheap(t, y, args):
    return {"x": y["v"], "v": -jnp.sin(y["x"])}


def middle(t, y, args):
    return {"x": y["v"], "v": -jnp.sin(y["x"]) - 0.2 * jnp.cos(t) * y["x"] ** 2}


def fine(t, y, args):
    return {"x": y["v"], "v": -jnp.sin(y["x"]) - 0.25 * jnp.cos(t) * y["x"] ** 2 - 0.1 * y["v"]}


class Problem(eqx.Module):
    """Pendulums, the same for all pilots."""

    def __call__(self, key):
        return ml.MultilevelTerm(cheap, middle, fine, costs=COSTS)


class Noisy(eqx.Module):
    """A process in two dimensions with noise of each pilot's own."""

    def __call__(self, key):
        levels = [lambda t, y, args, k=k: -y + k * jnp.sin(2 * y) for k in (0.0, 0.2, 0.3)]
        path = ml.GridBrownianPath(TS, (2,), key=key)
        noise = diffrax.ControlTerm(lambda t, y, args: 0.3 * jnp.eye(2), path)
        return diffrax.MultiTerm(ml.MultilevelTerm(*levels), noise)


def starts(count, seed=0):
    keys = jr.split(jr.key(seed))
    return {"x": jr.normal(keys[0], (count, 3)), "v": jr.normal(keys[1], (count, 3))}


def make_pilots(count=24, seed=0, problem=None, y0s=None):
    return FitPilots(
        problem or Problem(),
        TS,
        1,
        starts(count, seed) if y0s is None else y0s,
        args=None,
        labels=None,
        key=jr.key(7),
        costs=COSTS,
        time_variable="time",
        batch_size=16,
    )
