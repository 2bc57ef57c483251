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
# # A family from files
#
# Two checkpoints of one architecture, a small and a large one, become a ladder: loaded, checked, calibrated, sampled.
# The files here have **random weights**, because none could be downloaded where this was written: what is shown is the
# way, not its worth. With trained files the same lines give pictures; with random ones they give noise, and the
# calibration says so.

# %%
import functools
import json
import tempfile
from pathlib import Path

import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from safetensors.numpy import save_file

import mlem_jax as ml
from mlem_jax.diffusion import calibrate_ladder, load_network, PredictorLadder, sample, UNet2D, UNet2DConfig
from mlem_jax.diffusion._pretrained.parameters import required_shapes

# %matplotlib inline
plt.rcParams["figure.dpi"] = 80
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Stand-ins for downloaded files
#
# What diffusers' `save_pretrained` leaves for a `UNet2DModel`: `config.json` and the weights. You have such folders already.


# %%
def write(name, widths, seed):
    config = {
        "_class_name": "UNet2DModel",
        "sample_size": 8,
        "block_out_channels": widths,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D"] * len(widths),
        "up_block_types": ["UpBlock2D"] * len(widths),
        "add_attention": False,
    }
    shapes = required_shapes(functools.partial(UNet2D, UNet2DConfig.read(config)))
    rng = np.random.default_rng(seed)
    weights = {
        k: (rng.normal(size=s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for k, s in shapes.items()
    }
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / name / "diffusion_pytorch_model.safetensors")


write("small", [4], seed=0)
write("large", [16], seed=1)

# %% [markdown]
# ## Two files are a ladder
#
# Each network comes with the process, prediction and conditioning of its training, here those of Ho et al. 2020. The
# ladder looks at shapes, labels and costs, and refuses what does not fit.

# %%
networks = [load_network(folder / name) for name in ("small", "large")]
ladder = PredictorLadder(networks)
print(ladder)
print("million FLOPs:", [round(flops / 1e6, 2) for flops in ladder.level_costs()])

# %%
try:
    PredictorLadder(networks[::-1])
except ValueError as error:
    print(error)

# %% [markdown]
# ## Calibrate
#
# One method and a few pilots, to be quick; `calibrate_methods` measures both, and `fit_pilots=128` fits steps as well. Read
# the last lines: these networks neither denoise nor belong together.

# %%
calibration = calibrate_ladder(ladder, steps=16, pilots=4, progress=False)
print(calibration)

# %% [markdown]
# ## Plan and sample
#
# With networks that have nothing to do with each other the small one is of no use, so the plan leaves it out.

# %%
ladder = ladder.with_calibrations({"ode": calibration})
plan = ladder.plan(budget=8)
print(plan)
found = sample(ladder, n=8, plan=plan, key=jr.key(0), progress=False)

# %% [markdown]
# ## The sum telescopes
#
# Whatever the networks are: with both looked at in every step (`p = 1`), multilevel steps are those of the large network
# alone, which for the probability flow are DDIM's. The test suite compares these with diffusers' own scheduler.

# %%
ts = np.asarray(ladder.process.grid(8))
alone = sample(ladder, n=8, plan=ml.steps_plan(ts, level=1), key=jr.key(0), progress=False)
both = ml.MLEM([1.0, 1.0], key=jr.key(0))
import diffrax  # noqa: E402

y0 = ts[0] * jr.normal(jr.key(1), (8, 8, 3))
ends = [
    diffrax.diffeqsolve(
        ladder.term(), solver, ts[0], ts[-1], None, y0, stepsize_controller=diffrax.StepTo(ts)
    ).ys[0]
    for solver in (both, diffrax.Euler())
]
print("largest difference:", float(abs(ends[0] - ends[1]).max()), "of", float(abs(ends[1]).max()))

# %%
fig, axes = plt.subplots(2, 8, figsize=(8, 2.2), layout="constrained")
for row, (images, name) in zip(
    axes, ((found.images, "the plan"), (alone.images, "large alone")), strict=True
):
    for axis, image in zip(row, images, strict=True):
        axis.imshow(np.clip((image / abs(image).max() + 1) / 2, 0, 1))
        axis.set_xticks([])
        axis.set_yticks([])
    row[0].set_ylabel(name, fontsize=8)
fig.suptitle("Random weights, hence noise", fontsize=9)
plt.show()

# %% [markdown]
# The same from the command line:
#
# ```
# mlem-jax calibrate --network small --network large --out calibrations
# mlem-jax sample --network small --network large --calibration calibrations --n 64 --out pictures
# ```
