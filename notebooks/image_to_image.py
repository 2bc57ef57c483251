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
# # Image to image with a plan
#
# Samples may start from an image at a noise level instead of from noise (SDEdit, Meng et al. 2022), or keep some of its
# pixels (inpainting). A plan cut at a noise level keeps its steps and its looks, so it costs what is left of it.

# %%
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

import mlem_jax as ml
from mlem_jax.diffusion import load_images, load_ladder, sample

# %matplotlib inline
plt.rcParams["figure.dpi"] = 80
ladder = load_ladder()
images = load_images(train=False)[:8]  # numbers from -1 to 1

# %% [markdown]
# ## The plan
#
# Fitted steps need those before and cannot begin in the middle; naming the coins asks for a plan that can. Two levels and
# 16 steps keep this quick.

# %%
plan = ladder.plan(budget=5, levels=(1, 3), steps=16, coins=ml.SystematicCoins(offset=0.5))
print(plan)
for s in (5.0, 1.0):
    rest = plan.cut(s)
    print(
        f"from s = {s:g}: {len(rest.ts) - 1} steps are left, {rest.cost:.1f} evaluations of the finest network"
    )

# %% [markdown]
# ## From an image
#
# The more noise, the less is left of the image. At `start_at=0` it comes back as it is.

# %%
rows = {"held out": images}
for s in (1.0, 5.0):
    found = sample(ladder, n=8, plan=plan, key=jr.key(0), start_from=images, start_at=s, progress=False)
    rows[f"from s = {s:g}"] = found.images
same = sample(ladder, n=8, plan=plan, key=jr.key(0), start_from=images, start_at=0, progress=False).images
print("at 0 the images come back:", bool(np.all(same == images)))
for name, drawn in list(rows.items())[1:]:
    print(f"{name}: RMS distance {np.sqrt(np.mean((drawn - images) ** 2)):.2f}")

# %% [markdown]
# ## Known pixels
#
# The upper half is kept; the networks see it noised as they did in training, and the samples have exactly its pixels.

# %%
mask = np.zeros(ladder.shape, bool)
mask[:14] = True
found = sample(ladder, n=8, plan=plan, key=jr.key(1), known=images, mask=mask, progress=False)
print("known pixels equal:", bool(np.all(found.images[:, :14] == images[:, :14])))
rows["upper half kept"] = found.images

# %%
fig, axes = plt.subplots(len(rows), 8, figsize=(7, 3.7), layout="constrained")
for row, (name, drawn) in zip(axes, rows.items(), strict=True):
    for axis, image in zip(row, drawn, strict=True):
        axis.imshow(image[..., 0], cmap="gray", vmin=-1, vmax=1)
        axis.set_xticks([])
        axis.set_yticks([])
    row[0].set_ylabel(name, fontsize=8)
plt.show()

# %% [markdown]
# From the command line: `mlem-jax sample --start-from PICTURE --start-at 2 --out FOLDER`, and
# `--known PICTURE --mask PICTURE` for the pixels to keep.
