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
# # One network only
#
# You have a single diffusion network and nothing cheaper. Three ways to fewer evaluations, in the order in which to try
# them: second-order steps, steps that are fitted to the network, and a cheaper level that is distilled from it, here from
# noise alone. The network is the second of the shipped ladder, 5.6 million FLOPs, used as if it came from elsewhere.

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

import mlem_jax as ml
from mlem_jax.diffusion import distil, load_ladder, PredictorLadder, sample, Training

# %matplotlib inline
plt.rcParams["figure.dpi"] = 80
folder = Path(tempfile.mkdtemp())
network = load_ladder().predictors()[1]
single = PredictorLadder([network])
print(single)

# %% [markdown]
# ## Steps without a calibration
#
# A grid and a method are enough. Euler's steps on the probability flow are DDIM; second-order steps in $\log s$ are
# DPM-Solver-2M. The error is the RMS distance of pixels to 64 second-order steps from the same noise.


# %%
def draw(plan, ladder=single):
    return sample(ladder, n=16, plan=plan, key=jr.key(0), progress=False).images


def steps(count, method):
    return ml.steps_plan(single.process.grid(count), method=method)


second = ml.AdamsBashforth("log")
reference = draw(steps(64, second))


def error(images):
    return float(np.sqrt(np.mean((images - reference) ** 2)))


rows = {"DDIM, 6": draw(steps(6, ml.EulerMaruyama())), "2M, 6": draw(steps(6, second))}
for name, images in rows.items():
    print(f"{name} evaluations: {error(images):.3f}")

# %% [markdown]
# ## Steps fitted to the network
#
# Their times and coefficients are chosen on pilot trajectories; nothing is trained. 16 pilots keep this quick, 64 to 128
# are better: so few also decide what is predicted, and on fresh noise the error is larger.

# %%
y0s = single.process.s_max * jr.normal(jr.key(1), (16, *single.shape))
fitted = ml.fit_steps(
    single.term(), single.process.grid(32), y0s, key=jr.key(2), time_variable="log", most=6, progress=False
)
plan = fitted.plan(budget=6)
print(plan)
rows["fitted, 6"] = draw(plan)
print(f"fitted, 6 evaluations: {error(rows['fitted, 6']):.3f}")

# %% [markdown]
# ## A cheaper level, from noise alone
#
# The network draws a few hundred images, and one of a ninth of its cost learns its output on them. A real run takes
# thousands of steps; a run that was stopped continues. The report says what this cost in evaluations of the network, and
# how near the level comes. `seconds=[...]` instead of `mflops=[...]` asks for levels of given wall-clock seconds.

# %%
quick = Training(
    match_steps=150, match_learning_rate=2e-3, match_log_normal=(0.5, 1.6), warmup_steps=30, label_dropout=0.0
)
made = distil(network, folder / "small", mflops=[0.6], samples=256, training=quick, pilots=0, progress=False)
print(made)

# %% [markdown]
# Both together are a ladder like any other. `calibrate_methods(made.ladder)` measures it, as `distil` does unless it is
# given `pilots=0`, and a plan says whether the small level is worthwhile. After 150 steps it is not: on the trajectories
# its drift still differs from the network's by a good part.

# %%
small, large = made.ladder.term().levels
for level in (10.0, 1.0, 0.1):
    y, s = reference[:8] + level * jr.normal(jr.key(3), (8, *single.shape)), jnp.asarray(level)
    drifts = [jax.vmap(drift, (None, 0, None))(s, y, None) for drift in (small, large)]
    difference, size = (float(jnp.sqrt(jnp.mean(x**2))) for x in (drifts[0] - drifts[1], drifts[1]))
    print(f"at noise {level:g} the drifts differ by {difference / size:.0%}")

# %% [markdown]
# ## What to choose
#
# Fitted steps need no training and are the first thing to try. A distilled level is worthwhile where tens of thousands of
# images are drawn with few evaluations each, and after thousands of steps.

# %%
rows["64 steps"] = reference
fig, axes = plt.subplots(len(rows), 10, figsize=(8, 3.4), layout="constrained")
for row, (name, images) in zip(axes, rows.items(), strict=True):
    for axis, image in zip(row, images[:10], strict=True):
        axis.imshow(image[..., 0], cmap="gray", vmin=-1, vmax=1)
        axis.set_xticks([])
        axis.set_yticks([])
    row[0].set_ylabel(name, fontsize=8)
plt.show()

# %% [markdown]
# From the command line: `mlem-jax sample --network large --steps 6 --method ab2 --out pictures`;
# `mlem-jax calibrate --network large --fit-pilots 128 --out fitted`; `mlem-jax distil --network large --mflops 1,6 --out
# small`, then `mlem-jax sample --network small --network large --calibration small/calibrations --out pictures`.
