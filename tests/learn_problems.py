"""Linear levels with additive noise, for the tests of `learn_probabilities`."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import mlem_jax as ml

# Linear levels f^k = M_k x, with increments that shrink and whose weight moves in time, and additive noise.
STEPS, KNOTS = 16, 3
COSTS = np.array([1.0, 4.0, 16.0])
FINEST = np.array([[-1.0, 0.5], [-0.5, -0.7]])
CHANGE = np.array([[0.5, 1.6], [-1.2, 0.6]])
NOISE = 0.3
LEARNED = (False, True, True)


def matrices(t):
    shrink = jnp.stack([1.0 * jnp.ones_like(t), 0.5 * (1 - 0.8 * t), jnp.zeros_like(t)])
    return jnp.asarray(FINEST)[None] + jnp.tensordot(shrink, jnp.asarray(CHANGE), 0)


def linear_term():
    levels = [lambda t, y, args, k=k: matrices(jnp.asarray(t))[k].astype(y.dtype) @ y for k in range(3)]
    return ml.MultilevelTerm(*levels, costs=COSTS)


def grid(steps=STEPS):
    return jnp.linspace(0.0, 1.0, steps + 1)


class NoisyTerms(eqx.Module):
    """Terms with noise of their own for each trajectory."""

    ts: jax.Array

    def __call__(self, key):
        path = ml.GridBrownianPath(self.ts, (), key=key)
        noise = diffrax.ControlTerm(lambda t, y, args: jnp.full_like(y, NOISE), path)
        return diffrax.MultiTerm(linear_term(), noise)


Y0 = jnp.array([1.0, 0.5])


def bent(t, y, args):
    return jnp.cos(2 * t) - jnp.sin(2 * y)


def more_bent(t, y, args):
    return bent(t, y, args) + 1.5 * jnp.cos(3 * y + t)


def learn(**settings):
    settings = dict(start=[1.0, 0.4, 0.4], key=jr.key(4), knots=KNOTS) | settings
    return ml.learn_probabilities(NoisyTerms(grid()), grid(), jnp.stack([Y0] * 4), **settings)
