# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own SDE or ODE
#
# You have diffrax code, an expensive drift, and something cheaper that is nearly right. Here: probes that fly
# through a galaxy of 16384 stars, with drag and random kicks.
#
# $$dx = v\,dt \qquad dv = \big(g(x) - 0.2\,v\big)\,dt + 0.1\,dW$$
#
# The pull $g$ is a sum over all stars. The cheap pull lumps stars together.

# %%
import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

import mlem_jax as ml
from mlem_jax import plot

# %matplotlib inline
plt.rcParams["figure.dpi"] = 80

STARS, SOFT = 16384, 0.15
rng = np.random.default_rng(0)
radius = rng.gamma(2.0, 0.35, STARS)
angle = np.pi * rng.integers(0, 2, STARS) + 2.5 * np.log(radius + 0.2) + 0.3 * rng.normal(size=STARS)
stars = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)


def lump(cells):
    """The stars of each cell of a grid as one, at their centre."""
    number = np.floor((np.clip(stars, -2.99, 2.99) + 3) / 6 * cells).astype(int) @ [cells, 1]
    mass = np.bincount(number, minlength=cells**2)
    centre = [np.bincount(number, x, minlength=cells**2) / np.maximum(mass, 1) for x in stars.T]
    full = mass > 0
    return jnp.asarray(np.stack(centre, 1)[full], jnp.float32), jnp.asarray(mass[full] / STARS, jnp.float32)


# %% [markdown]
# ## The code that you have
#
# A drift `(t, y, args)`, with `y` the place and the velocity, and a diffrax solve of it.


# %%
class Galaxy(eqx.Module):
    places: jax.Array
    masses: jax.Array

    def __call__(self, t, y, args):
        x, v = y[:2], y[2:]
        away = self.places - x
        pull = 3 * self.masses / (jnp.sum(away**2, 1) + SOFT**2)
        return jnp.concatenate([v, pull @ away - 0.2 * v])


expensive = Galaxy(jnp.asarray(stars), jnp.full(STARS, 1 / STARS))
STEPS, END = 1024, 4.0
ts = jnp.linspace(0.0, END, STEPS + 1)
kick = jnp.concatenate([jnp.zeros((2, 2)), 0.1 * jnp.eye(2)])


def with_noise(term, key):
    path = ml.GridBrownianPath(ts, (2,), key=key)
    return diffrax.MultiTerm(term, diffrax.ControlTerm(lambda t, y, args: kick, path))


y0 = jnp.array([1.5, 0.0, 0.0, 1.3])
terms = with_noise(diffrax.ODETerm(expensive), jr.key(0))
single = diffrax.diffeqsolve(terms, diffrax.Euler(), 0.0, END, END / STEPS, y0)
print("end:", single.ys[0])

# %% [markdown]
# ## The two words that change
#
# `ODETerm(expensive)` becomes `MultilevelTerm(..., expensive)`, cheapest first, and `Euler()` becomes `MLEM(...)`.
# 33 lumps in every step, a finer grid of lumps in one of 16, all stars in one of 64:

# %%
cheap, medium = Galaxy(*lump(6)), Galaxy(*lump(24))
levels = ml.MultilevelTerm(cheap, medium, expensive)
print("bodies:", [len(level.masses) for level in levels.levels])

solver = ml.MLEM([1.0, 1 / 16, 1 / 64], key=jr.key(1))
saveat = diffrax.SaveAt(t1=True, solver_state=True)
terms = with_noise(levels, jr.key(0))
multi = diffrax.diffeqsolve(terms, solver, 0.0, END, END / STEPS, y0, saveat=saveat)
print("end:", multi.ys[0])
print("evaluations:", multi.solver_state.evaluations)

# %% [markdown]
# Same end, with 16 looks at all stars instead of 1024. The Brownian path is the same in both, and would be with
# any step that fits its grid: that is what `GridBrownianPath` is for. Everything else stays diffrax: `SaveAt`,
# `vmap`, events.

# %%
START = jnp.array([1.5, 0.0, 0.0, 1.3])


def starts(key, n):
    turn = 2 * jnp.pi * jr.uniform(key, (n,))
    zero = jnp.zeros(n)
    radial, along = (
        jnp.stack(pair, 1) for pair in ((jnp.cos(turn), jnp.sin(turn)), (-jnp.sin(turn), jnp.cos(turn)))
    )
    return jnp.concatenate([1.5 * radial, 1.3 * along], 1) + 0.05 * jr.normal(key, (n, 4))
