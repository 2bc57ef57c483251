"""Levels, coefficients and a plain loop for the tests of `LinearMultistep`."""

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from problems import WITH_STATE

import mlem_jax as ml

Y0 = np.array([1.0, 0.5])
GRADED = 0.5 + 2 * np.linspace(0, 1, 13) ** 1.5  # unequal steps from 0.5 to 2.5
EVALUATED = ((0, 3, 4, 9), (0, 4, 8))  # of the two higher levels, in 12 steps


def cheap(t, y, args):
    return jnp.stack([y[1], -jnp.sin(y[0])])


def middle(t, y, args):
    return cheap(t, y, args) + jnp.stack([0.0 * t, -0.5 * jnp.cos(t) * y[0] ** 2])


def fine(t, y, args):
    return middle(t, y, args) + jnp.stack([0.1 * y[0] * y[1], -0.2 * y[1]])


TERM = ml.MultilevelTerm(cheap, middle, fine, costs=(0.01, 0.1, 1.0))


def on_grid(term, coefficients, y0, saveat=WITH_STATE, **settings):
    ts = jnp.asarray(coefficients.ts)
    return diffrax.diffeqsolve(
        term,
        ml.LinearMultistep(coefficients),
        ts[0],
        ts[-1],
        None,
        y0,
        stepsize_controller=diffrax.StepTo(ts),
        saveat=saveat,
        **settings,
    )


def random_coefficients(seed=0, ts=GRADED, evaluated=EVALUATED, drifts=3, held=2):
    """Any numbers at all, about as large as classical ones."""
    classical = ml.MultistepCoefficients.adams_bashforth(
        ts, drifts=drifts, num_levels=len(evaluated) + 1, evaluated=evaluated, held=held, repeats=True
    )
    draw = np.random.default_rng(seed)

    def jitter(x):
        return np.asarray(x + 0.05 * draw.normal(size=x.shape))

    return eqx.tree_at(
        lambda c: (c.drifts, c.increments, c.corrections, c.repeats),
        classical,
        (
            jitter(classical.drifts),
            jitter(classical.increments),
            jitter(classical.corrections),
            classical.repeats & (draw.uniform(size=classical.repeats.shape) < 0.6),
        ),
    )


def by_hand(levels, coefficients, y):
    """The method in numpy, with lists that are never cut short."""
    table, ts = coefficients, coefficients.ts
    y, drifts, found = np.asarray(y, float), [], [[] for _ in levels[1:]]
    for n, t in enumerate(ts[:-1]):
        drift = np.asarray(levels[0](t, y, None))
        higher = np.flatnonzero(table.evaluated[n])
        for k in higher:
            found[k].insert(0, np.asarray(levels[k + 1](t, y, None)) - drift)
        for k in higher:
            y = y + sum(c * d for c, d in zip(table.corrections[n, k], found[k], strict=False))
        if table.repeats[n]:
            drift = np.asarray(levels[0](t, y, None))
        drifts.insert(0, drift)
        y = y + sum(c * f for c, f in zip(table.drifts[n], drifts, strict=False))
        for k, increments in enumerate(found):
            y = y + sum(c * d for c, d in zip(table.increments[n, k], increments, strict=False))
    return y
