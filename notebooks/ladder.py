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
# # A ladder of networks, from data to samples
#
# Three tiny UNets of growing size learn to draw blobs; ML-EM then samples with all three at the cost of a few
# evaluations of the largest. Quick mode trains for half a minute.

# %%
import tempfile
from pathlib import Path

import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

import mlem_jax as ml
from mlem_jax import plot
from mlem_jax.diffusion import calibrate_ladder, load_data, read_config, sample, train_ladder

# %matplotlib inline
plt.rcParams["figure.dpi"] = 80
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Data
#
# Any array of images will do, saved as `.npy`: here one or two bright blobs on black, 12 x 12 pixels. (Folders of
# pictures and MNIST's files are read too.) A tenth is held out.

# %%
rng = np.random.default_rng(0)
count = 4000
rows, columns = np.mgrid[:12, :12]
images = np.zeros((count, 12, 12))
for blob in range(2):
    centre, size = rng.uniform(2.5, 8.5, (2, count, 1, 1)), rng.uniform(1.0, 2.2, (count, 1, 1))
    shape = np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / (2 * size**2))
    images = np.maximum(images, shape * (1 if blob == 0 else rng.integers(0, 2, (count, 1, 1))))
np.save(folder / "blobs.npy", np.round(255 * images).astype(np.uint8))

data = load_data(folder / "blobs.npy", (12, 12, 1))
print("training:", data.images.shape, "held out:", data.held_out.shape)

# %% [markdown]
# ## The ladder's file
#
# One TOML file describes the levels, cheapest first, and the training. The finest level learns from the data; the smaller
# ones are then distilled from it (`match_steps`), which makes their corrections small.

# %%
(folder / "blobs.toml").write_text("""
name = "blobs"
shape = [12, 12, 1]

[training]
steps = 700
match_steps = 300
batch_size = 64
learning_rate = 3e-3
match_learning_rate = 4e-3
warmup_steps = 50
ema_decay = 0.99

[[levels]]
width = 32
folds = [12]
multipliers = [1]
blocks = [1]

[[levels]]
width = 12
folds = [6, 2]
multipliers = [1, 2]
blocks = [1, 1]

[[levels]]
width = 20
folds = [3, 4]
multipliers = [1, 2]
blocks = [1, 1]
""")
print(read_config(folder / "blobs.toml").process)

# %% [markdown]
# ## Train
#
# `train_ladder` continues where it was stopped. At its end it would calibrate on 128 images, for the probability flow and
# the reverse SDE; `pilots=0` leaves that for later. From a shell the same is `mlem-jax train`.

# %%
ladder = train_ladder(
    folder / "blobs.toml", folder / "run", data.images, data.held_out, pilots=0, progress=False
)
card = ladder.card
for k, (parameters, flops) in enumerate(zip(card["parameters"], card["flops_per_image"], strict=True)):
    loss = card["held_out_loss"]["data"][k]
    print(f"level {k + 1}: {parameters:6d} parameters, {flops / 1e6:6.3f} MFLOP, held-out loss {loss:.3f}")

# %%
losses = np.genfromtxt(folder / "run" / "losses.csv", delimiter=",", names=True, dtype=None, encoding="utf8")
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
for k in (3, 2, 1):
    curve = losses[f"level_{k}"]
    kept = np.isfinite(curve)
    against = "the data" if k == 3 else "level 3"
    axis.semilogy(
        losses["step"][kept], curve[kept], ".-", color=f"C{k - 1}", label=f"level {k}, against {against}"
    )
axis.set(xlabel="step", ylabel="loss")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Calibrate
#
# How far are the levels apart along real trajectories, and what do they cost?

# %%
calibration = calibrate_ladder(ladder, steps=64, pilots=24, progress=False)
print(calibration)

# %%
plot.increments(calibration, time_label="s", log_time=True)

# %% [markdown]
# `s` is the noise level, and sampling goes from right to left. Costs are FLOPs: networks this small differ
# less in seconds (third column), so that little time is saved here. For larger ones FLOPs and seconds agree better.
#
# ## Plan
#
# Choose a budget, in evaluations of the largest network:

# %%
plans = {budget: calibration.plan(budget=budget) for budget in (4, 8, 16)}
print(plans[8])

# %%
plot.error_against_cost(calibration, list(plans.values()))

# %% [markdown]
# ## Sample
#
# `sample` draws any number of images, on all devices, in batches; with `out=` it continues after a crash. Sample `i`
# begins with the same noise whatever the plan, so that rows can be compared. The first row is Euler on the largest
# network with 64 steps; `steps_plan` makes plans of a single level without a calibration.


# %%
def alone(level, steps):
    """Euler with `steps` steps on one level."""
    return ml.steps_plan(ladder.config.process.grid(steps), level=level)


def draw(plan):
    return sample(ladder, n=64, plan=plan, key=jr.key(0), progress=False).images[..., 0]


reference = draw(alone(2, 64))
shown = {"level 3 alone, 64 steps": reference}
for budget, plan in plans.items():
    shown[f"plan of budget {budget}"] = draw(plan)
shown["level 3 alone, 8 steps"] = draw(alone(2, 8))
shown["level 2 alone, 64 steps"] = draw(alone(1, 64))
shown["level 1 alone, 64 steps"] = draw(alone(0, 64))
for name, drawn in shown.items():
    print(f"{name:26s} distance to the first row {np.sqrt(np.mean((drawn - reference) ** 2)):.4f}")

# %%
plot.samples(list(shown.items()), columns=12)

# %% [markdown]
# Real images, for comparison:

# %%
plot.samples([("held out", data.held_out[:12, ..., 0] / 127.5 - 1)], columns=12)

# %% [markdown]
# When was each network evaluated? The largest one only where it matters:

# %%
plot.plan_raster(plans[8], key=jr.key(0), time_label="s", log_time=True)

# %% [markdown]
# For images worth showing train longer, and space the levels by a factor of 5 or so in cost:
# `mlem_jax/diffusion/fashion_mnist/ladder.toml` is the file of the shipped ladder, and `MODEL_CARD.md` beside it describes
# the result.
