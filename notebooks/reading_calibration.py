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
# # Reading a calibration
#
# What each column and warning of `print(calibration)` and `print(plan)` means, on four
# hierarchies: the networks that the package ships, one that suits coupled coins only, one with a useless level, and
# one solved with steps of second order.

# %%
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

import mlem_jax as ml
from mlem_jax import plot
from mlem_jax.diffusion import load_ladder

# %matplotlib inline
plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## The shipped networks
#
# Their calibration is in the package; nothing is trained or run here.

# %%
calibration = load_ladder().calibration()
print(calibration)

# %% [markdown]
# | column | meaning | what to look for |
# |---|---|---|
# | cost | of one evaluation, the finest level being 1 (FLOPs, unless you say otherwise) | factors of 4 to 8 |
# | seconds | wall-clock seconds of one evaluation of a batch | the same factors; if not, calibrate with `costs="seconds"` |
# | max D_k | RMS of the level's correction $D_k = f^k - f^{k-1}$, where it is largest | falls from level to level |
# | var J D_k | mean square movement of the *end* by a correction in one step ($J$: derivative of the end) | falls faster |
# | mass | the same summed over the solve: how far the level could move the end | what gamma is fitted to |
# | kurtosis | 3 for a Gaussian; large: few trajectories dominate the error | below 100, or more pilots |
# | memory | for how many steps a correction stays alike | long: coupled coins gain much |
# | alone | how far the level alone ends from the finest: predicted from its effects, over measured | near 1; beyond 3 or below 1/3 do not trust plans with it |
# | share | of what independent coins would pay, by level | no level takes it all |
#
# Below the table: **gamma**, in cost = accuracy$^{-\gamma}$, or why there is none; the error of the finest level alone
# by its number of steps; then warnings. Here level 3 corrects about as much as level 2, so there is no power law to
# fit.
#
# ### When does a level matter?
#
# Left, the size of each correction; right, what it does to the final image. The axis is the noise level, so sampling
# goes from right to left.

# %%
plot.increments(calibration, time_label="s", log_time=True)

# %% [markdown]
# ## From a calibration to a plan
#
# One number: `budget`, in evaluations of the finest level, or `error`, in the units of the state.

# %%
plan = calibration.plan(budget=12)
print(plan)

# %% [markdown]
# - **expected firings**: how many times each kept level fires; times *cost each* it is about the level's cost.
# - **predicted error**: distance to the exact solution of the finest level; ± is its standard error over pilots. It has
#   two parts: **steps**, the error of the finest level alone with as many steps, and **coins**. Their squares add up,
#   unless trial runs showed that both point the same way. The larger one says what to spend on.
# - **times the linear model's**: the coins' error, trial runs included, over that of the linear model. Near 1 the linear
#   model can be trusted.
# - **speed-up**: cost at the same error without ML-EM, on the finest level and on the best level alone.
#
# When is each network evaluated?

# %%
plot.plan_raster(plan, key=jr.key(0), time_label="s", log_time=True)

# %% [markdown]
# Which budget? Compare a few plans with each level alone:

# %%
plans = [calibration.plan(budget=budget) for budget in (3, 6, 12, 24)]
plot.error_against_cost(calibration, plans)

# %% [markdown]
# Take the budget where the line of plans bends, or ask for an error. If `error=` cannot be reached, the message says what
# can:

# %%
wanted = calibration.plan(error=0.05)
print(
    f"error 0.05: cost {wanted.cost:.1f}, levels {[k + 1 for k in wanted.levels]}, {len(wanted.ts) - 1} steps"
)
try:
    calibration.plan(error=1e-4)
except ValueError as refusal:
    print(refusal)

# %% [markdown]
# With too small a budget the plan is one level alone:

# %%
print(calibration.plan(budget=1))

# %% [markdown]
# ## gamma below 2
#
# Sums of random features, so that gamma is ours to choose: field $j$ has size $r_j$ and costs $w_j$. First $r_j = 2^{-j}$
# and costs that grow by $2^{1.2}$ only.


# %%
class Fields(eqx.Module):
    inner: list
    outer: list

    def __call__(self, t, y, args):
        total = -y
        for a, b in zip(self.inner, self.outer, strict=True):
            total += b @ jnp.sin(a @ y + 2 * t)
        return total


def hierarchy(sizes, widths):
    inner, outer = [], []
    for j, (size, width) in enumerate(zip(sizes, widths, strict=True)):
        one, two = jr.split(jr.key(j))
        inner.append(jr.normal(one, (width, 16)) / 4)
        outer.append(size * jr.normal(two, (16, width)) * (2 / width) ** 0.5)
    return ml.MultilevelTerm(*[Fields(inner[:k], outer[:k]) for k in range(1, len(sizes) + 1)])


MIDPOINT = ml.SystematicCoins(offset=0.5)
ts, y0s = jnp.linspace(0.0, 2.0, 65), jr.normal(jr.key(1), (32, 16))


def measure(term):
    trials = (ml.IndependentCoins(), MIDPOINT)
    return ml.calibrate(term, ts, y0s, key=jr.key(2), trials=trials, progress=False)


shallow = measure(hierarchy([1, 1 / 2, 1 / 4, 1 / 8], [64, 83, 192, 441]))
print(shallow)

# %% [markdown]
# The warning says what follows: noise from the cheap levels alone costs independent coins more than they save. Evenly
# spaced evaluations need less (`theory_in_pictures` has the reason). Same budget, two policies; for
# the first the best plan is one level alone:

# %%
for coins in (ml.IndependentCoins(), MIDPOINT):
    plan = shallow.plan(budget=16, coins=coins)
    print(plan, end="\n\n")

# %% [markdown]
# ## A useless level
#
# The middle one costs nearly as much as the finest and corrects next to nothing.

# %%
useless = measure(hierarchy([1, 0.02, 0.3], [16, 500, 400]))
print(useless)

# %%
plan = useless.plan(budget=12)
print(plan)

# %% [markdown]
# There are two warnings and no gamma (effects that do not fall with the cost are no power law), and the plan leaves the
# level out. To see what the level would have cost, name all:

# %%
print("error with all levels:", round(useless.plan(budget=12, levels=(0, 1, 2)).error, 4))
print("error as planned:     ", round(plan.error, 4))

# %% [markdown]
# ## Steps of second order
#
# `method=ml.AdamsBashforth()` calibrates for `ml.MLAB2`. Its time variable says in which function of time the drift is
# extrapolated linearly: `"time"`, or `"log"` where times span decades, as in diffusion models. An example of that kind, from $s = 20$ to $0.02$: the
# probability flow of a Gaussian, and a cheap level with a wobble.

# %%
decades = np.geomspace(20.0, 0.02, 65)
phases = jnp.linspace(0, 2 * jnp.pi, 16, endpoint=False)


def wobbly(s, y, args):
    return s * y / (s**2 + 1 + 0.5 * jnp.sin(4 * jnp.log(s) + phases))


def gaussian(s, y, args):
    return s * y / (s**2 + 1)


flow = ml.MultilevelTerm(wobbly, gaussian, costs=(0.02, 1.0))
methods = {
    "Euler": ml.EulerMaruyama(),
    "AB2, time": ml.AdamsBashforth("time"),
    "AB2, log": ml.AdamsBashforth("log"),
}
found = {
    name: ml.calibrate(
        flow, decades, 20 * y0s, key=jr.key(3), trials=(MIDPOINT,), progress=False, method=method
    )
    for name, method in methods.items()
}
print(
    "finest level alone".ljust(20)
    + "".join(f"{n:9d}" for n in found["Euler"].measurements.single_steps)
    + " steps"
)
for name, one in found.items():
    print(f"{name:20s}" + "".join(f"{e:9.4f}" for e in one.measurements.single_error[-1]))

# %%
figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
for (name, one), colour in zip(found.items(), ("k", "C1", "C0"), strict=True):
    axis.loglog(
        one.measurements.single_steps,
        one.measurements.single_error[-1],
        ".:",
        color=colour,
        label=f"{name}: finest level alone",
    )
    plans = [one.plan(budget=budget) for budget in (4, 8, 16)]
    axis.loglog(
        [p.cost for p in plans], [p.error for p in plans], "s-", color=colour, ms=4, label=f"{name}: plans"
    )
axis.set(xlabel="cost in finest-level evaluations", ylabel="RMS error of the end state")
axis.set_xticks([1, 2, 4, 8, 16, 32, 64], [1, 2, 4, 8, 16, 32, 64])
axis.set_xticks([], minor=True)
axis.grid(alpha=0.3)
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# A plan remembers its method; `plan.solver(key=...)` is the matching `MLEM` or `MLAB2`. Rule of thumb: if *steps*
# is the larger part of a plan's error, calibrate with `ml.AdamsBashforth()`, or with more steps; if it is *coins*, spend a larger
# budget, or train better cheap levels.
