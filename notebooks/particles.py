# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Particles: a cheap stiff force and an expensive smooth one
#
# No images and no networks: 512 charged beads on 16 rings, in two dimensions, with thermal noise (overdamped
# Langevin dynamics). Stiff springs along each ring force small steps and cost next to nothing. The screened
# repulsion between all pairs costs nearly everything and changes slowly.
#
# $$dx = -\nabla U(x)\,dt + \sqrt{2T}\,dW$$

# %%
import timeit

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax
import matplotlib.pyplot as plt
import numpy as np

import mlem_jax as ml
from mlem_jax import plot

# %matplotlib inline

RINGS, BEADS = 16, 32
SHAPE = (2, RINGS * BEADS)
TEMPERATURE, TRAP, CHARGE, SCREENING, THICKNESS = 0.5, 0.1, 3.0, 10.0, 2.0
NEIGHBOURS = (1, 2)

# %% [markdown]
# ## Three levels
#
# 1. The springs, the trap, and the repulsion of the two nearest beads to each side along the ring: a fixed
#    list of neighbours, 1024 pairs.
# 2. Also the rest of the own ring, and each other ring as one point at its centre: 24 thousand pairs.
# 3. All pairs: 262 thousand.
#
# Each is an `eqx.Module`, called as `(t, y, args)`.


# %%
def strength(squared):
    r = jnp.sqrt(squared + THICKNESS**2)
    return CHARGE * jnp.exp(-r / SCREENING) * (1 / r + 1 / SCREENING) / r**2


def repulsion(beads, sources, weights=1.0):
    x, y = (b[..., :, None] - s[..., None, :] for b, s in zip(beads, sources, strict=True))
    pairs = weights * strength(x**2 + y**2)
    return pairs.sum(-1) * beads - jnp.einsum("...nm,c...m->c...n", pairs, sources)


def along_the_ring(rings):
    total = jnp.zeros_like(rings)
    for shift in NEIGHBOURS:
        away = rings - jnp.roll(rings, -shift, -1)
        force = strength(jnp.sum(away**2, 0)) * away
        total += force - jnp.roll(force, shift, -1)
    return total


class Neighbours(eqx.Module):
    stiffness: jax.Array

    def __call__(self, t, y, args):
        rings = y.reshape(2, RINGS, BEADS)
        link = jnp.roll(rings, -1, -1) - rings
        length = jnp.sqrt(jnp.sum(link**2, 0) + 1e-6)
        tension = self.stiffness * (1 - 1 / length) * link
        force = tension - jnp.roll(tension, 1, -1) + along_the_ring(rings)
        return force.reshape(y.shape) - TRAP * y


class Centres(eqx.Module):
    near: Neighbours

    def __call__(self, t, y, args):
        rings = y.reshape(2, RINGS, BEADS)
        apart = jnp.abs(jnp.arange(BEADS)[:, None] - jnp.arange(BEADS))
        apart = jnp.minimum(apart, BEADS - apart)
        own = repulsion(rings, rings, apart > NEIGHBOURS[-1])
        others = BEADS * (1 - jnp.repeat(jnp.eye(RINGS), BEADS, axis=0))
        return self.near(t, y, args) + own.reshape(y.shape) + repulsion(y, rings.mean(2), others)


class AllPairs(eqx.Module):
    near: Neighbours

    def __call__(self, t, y, args):
        listed = along_the_ring(y.reshape(2, RINGS, BEADS)).reshape(y.shape)
        return self.near(t, y, args) + repulsion(y, y) - listed


near = Neighbours(jnp.asarray(25.0))
LEVELS = (near, Centres(near), AllPairs(near))

# %% [markdown]
# `calibrate` takes a function of a key that returns the terms, so that each pilot has its own noise. The
# arrays of a module are arguments of the compiled code. With `GridBrownianPath` coarse steps see the sums of the fine
# increments, so that errors can be measured trajectory by trajectory.


# %%
class MakeTerms(eqx.Module):
    levels: tuple
    ts: jax.Array

    def __call__(self, key):
        noise = ml.GridBrownianPath(self.ts, SHAPE, key=key)
        strength = lineax.DiagonalLinearOperator(jnp.full(SHAPE, (2 * TEMPERATURE) ** 0.5))
        diffusion = diffrax.ControlTerm(lambda t, y, args: strength, noise)
        return diffrax.MultiTerm(ml.MultilevelTerm(*self.levels), diffusion)


def initial_state(key):
    keys = jr.split(key, 3)
    lattice = 12.0 * (jnp.arange(4) - 1.5)
    centres = jnp.stack(jnp.meshgrid(lattice, lattice)).reshape(2, RINGS, 1)
    centres += 0.5 * jr.normal(keys[0], centres.shape)
    angle = 2 * jnp.pi * (jnp.arange(BEADS) / BEADS + jr.uniform(keys[1], (RINGS, 1)))
    circle = BEADS / (2 * jnp.pi) * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    return (centres + circle + 0.1 * jr.normal(keys[2], circle.shape)).reshape(SHAPE)


# %% [markdown]
# ## Calibrate
#
# 240 steps, and a half, a quarter, ... of that. With fewer than about 50 the springs explode, as the
# report shows.

# %%
STEPS = 240
ts = jnp.linspace(0.0, 1.0, STEPS + 1)
pilots = jax.vmap(initial_state)(jr.split(jr.key(0), 16))
calibration = ml.calibrate(MakeTerms(LEVELS, ts), ts, pilots, key=jr.key(1), progress=False)
print(calibration)

# %% [markdown]
# Costs are compiled FLOPs; in wall-clock seconds (third column) level 1 is relatively more expensive. The effects of the
# corrections on the end state are two and ten times smaller than that of the cheap level, and the corrections hardly change
# from step to step (memory). Evenly spaced evaluations profit from that and independent coins do not; hence the warning
# about gamma.

# %%
plot.increments(calibration)

# %% [markdown]
# ## Plan

# %%
plans = {budget: calibration.plan(budget=budget) for budget in (5, 12, 25)}
print(plans[12])
figure = plot.error_against_cost(calibration, list(plans.values()))
figure.axes[0].set_ylim(0.01, 3)  # Explosions end far above.
figure

# %% [markdown]
# ## Solve: fresh initial states, fresh noise
#
# The reference is Euler on all pairs with 480 and 240 steps, extrapolated.

# %%
y0s = jax.vmap(initial_state)(jr.split(jr.key(100), 16))
keys = jr.split(jr.key(101), 16)
fine = jnp.linspace(0.0, 1.0, 2 * STEPS + 1)


@eqx.filter_jit
def solve(solver, grid, noise_grid, levels_of=lambda terms: terms):
    def one(y0, key):
        sol = diffrax.diffeqsolve(
            levels_of(MakeTerms(LEVELS, noise_grid)(key)),
            solver,
            grid[0],
            grid[-1],
            None,
            y0,
            stepsize_controller=diffrax.StepTo(grid),
            saveat=diffrax.SaveAt(t1=True, solver_state=True),
        )
        return sol.ys[-1], sol.solver_state

    return jax.vmap(one)(y0s, keys)


def euler(steps):
    return solve(diffrax.Euler(), fine[:: 2 * STEPS // steps], fine)[0]


def error(ends):
    return float(jnp.sqrt(jnp.mean((ends - reference) ** 2)))


euler_ends = {steps: euler(steps) for steps in (60, 120, 240, 480)}
reference = 2 * euler_ends[480] - euler_ends[240]
euler_steps = np.array(list(euler_ends))
euler_error = np.array([error(ends) for ends in euler_ends.values()])
for steps, value in zip(euler_steps, euler_error, strict=True):
    print(f"Euler on all pairs, {steps:4d} steps: error {value:.4f}")

# %% [markdown]
# Seconds: compiled, warm, median of five solves of the 16 trajectories, with noise on each solve's own grid (one
# draw a step for both). Euler takes as many steps as it needs for the error that ML-EM was measured to have.


# %%
def seconds(*arguments):
    jax.block_until_ready(solve(*arguments))
    return np.median(timeit.repeat(lambda: jax.block_until_ready(solve(*arguments)), number=1, repeat=5))


measured, mlem_ends = {}, {}
print("budget   cost   predicted  measured   Euler needs   fewer evaluations")
for budget in (5, 12):
    plan = plans[budget]
    mlem_ends[budget], state = solve(plan.solver(key=jr.key(2)), plan.grid, fine, plan.terms)
    cost = ml.evaluation_report(state).finest_evaluations
    value = error(mlem_ends[budget])
    needs = np.exp(np.interp(-np.log(value), -np.log(euler_error), np.log(euler_steps)))
    measured[budget] = cost, value, round(float(needs))
    print(
        f"{budget:6d} {cost:6.1f} {plan.error:11.4f} {value:9.4f} {needs:13.0f} {needs / cost:19.1f}"
        + ("  (fewer explode)" if value > euler_error[0] else "")
    )

# %%
plan, (cost, value, needs) = plans[12], measured[12]
multilevel = seconds(plan.solver(key=jr.key(2)), plan.grid, plan.grid, plan.terms)
grid = jnp.linspace(0.0, 1.0, needs + 1)
single = seconds(diffrax.Euler(), grid, grid)
print(f"error {value:.4f}: ML-EM {multilevel:.2f} s, Euler with {needs} steps {single:.2f} s")
print(f"{single / multilevel:.1f} times fewer seconds, {needs / cost:.1f} times fewer evaluations")

# %% [markdown]
# ## Where nothing is gained
#
# A budget that is just enough for stable steps of the cheap level leaves nothing for corrections. The plan reports it:

# %%
small = calibration.plan(budget=0.4)
print(small)
alone = solve(small.solver(key=jr.key(2)), small.grid, fine, small.terms)[0]
print(f"measured: {error(alone):.3f}")

# %% [markdown]
# Other plans at a budget of 12, as predicted: without the middle level, and with the paper's independent coins.

# %%
for choice in ({}, {"levels": (0, 2)}, {"coins": ml.IndependentCoins()}):
    other = calibration.plan(budget=12, **choice)
    kept = [k + 1 for k in other.levels]
    print(f"levels {kept}, {choice}: error {other.error:.4f}, speed-up {other.speedup_over_finest:.1f}")

# %% [markdown]
# ## The particles
#
# End of trajectory 0. Grey: all pairs, 480 steps. The multilevel rings cover the grey ones; the neighbours alone miss the
# repulsion between rings.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.4), layout="constrained", sharex=True, sharey=True)
shown = {"start": y0s, "ML-EM, budget 12": mlem_ends[12], "neighbours alone": alone}
for axis, (title, states) in zip(axes, shown.items(), strict=True):
    for ring in range(RINGS):
        part = slice(ring * BEADS, (ring + 1) * BEADS)
        if title != "start":
            axis.scatter(*euler_ends[480][0][:, part], s=16, color="0.75", linewidths=0)
        axis.scatter(*states[0][:, part], s=3, color=f"C{ring % 10}", linewidths=0)
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_aspect("equal")
plt.show()

# %% [markdown]
# ## What to conclude
#
# The gain comes from a scale separation: springs that need many steps, and a far field that needs few evaluations. It is
# bounded by the price of the cheap level in every step, and smaller in seconds than in evaluations, because noise
# and stepping cost time too. Without stiffness Euler would take few steps as well, and nothing would be gained. The
# comparison is with Euler only: for springs alone, an implicit or exponential step is another remedy. Evenly
# spaced evaluations of a slow force are known as multiple time stepping (RESPA) in molecular dynamics; what is added
# here is that the levels, their frequencies and the predicted error come from a measurement. Errors are those of single
# trajectories over a short time, and 16 pilots give the prediction to about ten per cent.
