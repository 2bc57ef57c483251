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
# You have a single diffusion network. What there is to gain, in order: steps by hand, steps fitted to the network, and
# cheaper levels distilled from it, here from noise alone. The network is the second of the shipped ladder, 5.6 million
# FLOPs, treated as if it came from elsewhere; everything below takes half a minute.

# %%
import tempfile
from pathlib import Path

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
# ## Steps by hand
#
# No calibration: a grid and a method. Euler's steps on the probability flow are DDIM; second-order steps in $\log s$ are
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


rows = {"DDIM, 8": draw(steps(8, ml.EulerMaruyama())), "2M, 8": draw(steps(8, second))}
for name, images in rows.items():
    print(f"{name} evaluations: {error(images):.3f}")

# %% [markdown]
# ## Steps fitted to the network
#
# Times and coefficients chosen on pilots; nothing is trained. Few pilots here, to be quick; 64 to 128 are better.

# %%
y0s = single.process.s_max * jr.normal(jr.key(1), (16, *single.shape))
fitted = ml.fit_steps(
    single.term(), single.process.grid(32), y0s, key=jr.key(2), time_variable="log", most=8, progress=False
)
plan = fitted.plan(budget=8)
print(plan)
rows["fitted, 8"] = draw(plan)
print(f"fitted, 8 evaluations: {error(rows['fitted, 8']):.3f}")

# %% [markdown]
# ## A cheaper level, from noise alone
#
# The network draws a few hundred images; a network of a ninth of its cost learns its output on them. A real run takes
# thousands of steps. The report says what it cost, in evaluations of the network, and how near it comes.

# %%
quick = Training(
    match_steps=200, match_learning_rate=2e-3, match_log_normal=(0.5, 1.6), warmup_steps=30, label_dropout=0.0
)
made = distil(network, folder / "small", mflops=[0.6], samples=256, training=quick, pilots=0, progress=False)
print(made)

# %% [markdown]
# Together they are a ladder like any other: `calibrate_methods(made.ladder)`, then `plan` says whether the small one pays.
# Fitted steps need no training and are the first thing to try; a distilled level pays where the network is expensive
# enough that many images are drawn with it.

# %%
pair = made.ladder
y, s = single.process.s_max * jr.normal(jr.key(3), (4, *single.shape)), jnp.asarray(single.process.s_max)
small, large = (drift(s, y, None) for drift in pair.term().levels)
print("difference of the drifts at the start:", float(jnp.sqrt(jnp.mean((small - large) ** 2))))

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
# From the command line: `mlem-jax distil --network large --mflops 1,6 --out small`, then
# `mlem-jax sample --network small --network large --calibration small/calibrations --out pictures`.
