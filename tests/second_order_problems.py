"""Levels, and the formula of `MLAB2` in NumPy."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from problems import POLICIES

import mlem_jax as ml

KEY = jr.key(0)
Y0 = jnp.array([1.0, 0.5])
GRADED = np.linspace(0, 1, 25) ** 1.5 * 2  # steps of unequal lengths from 0 to 2


def mlab2(probabilities, coins=POLICIES["midpoint"], key=KEY, **settings):
    return ml.MLAB2(jnp.asarray(probabilities), coins=coins, key=key, **settings)


def cheap(t, y, args):
    return jnp.stack([y[1], -jnp.sin(y[0])])


def fine(t, y, args):
    return cheap(t, y, args) + jnp.stack([0.0 * t, -0.5 * jnp.cos(t) * y[0] ** 2])


def drag(t, y, args):
    # An increment that changes along its own direction: D' D is not zero.
    return cheap(t, y, args) + jnp.stack([0.3 * y[0] * jnp.cos(t), -0.5 * y[1]])


def by_hand(base, ts, y, correction=None, noise=None, clock=lambda t: t):
    """The formula in numpy. `base` is the drift that is extrapolated, `noise[n]` what is added to the state.
    `correction` is an increment, its probability in each step, and whether it is looked at there: in the middle of
    the step, where the state is with what is due of the increment last seen, as for the base."""
    lengths = np.diff(clock(np.asarray(ts)))
    old, seen, due, states = None, 0.0, 0.0, [np.asarray(y, float)]
    for n, (t, h) in enumerate(zip(ts[:-1], np.diff(ts), strict=True)):
        y, p, look = states[-1], 1.0, False
        if correction is not None:
            p, look = correction[1][n], correction[2][n]
        drift = np.asarray(base(t, y + due * h / p * seen, None))
        # What the drift changes by in this step, per unit of time.
        slope = 0 * drift
        if old is not None:
            slope = (drift - old) / lengths[n - 1] * lengths[n] / h
        step = h * drift + h**2 / 2 * slope
        middle = y + h / 2 * drift + h**2 / 8 * slope + (due + p / 2) * h / p * seen
        if look:
            seen = np.asarray(correction[0](t + h / 2, middle))
            step = step + h / p * seen
        due += p - look
        if noise is not None:
            step = step + noise[n]
        states.append(y + step)
        old = drift
    return np.stack(states[1:])
