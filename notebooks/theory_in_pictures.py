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
# # The theory in pictures
#
# ML-EM steps with drifts $f^1, \dots, f^K$ of growing cost. Their increments $D_k = f^k - f^{k-1}$ add up to the
# finest drift, and most of them are small. A small one is evaluated rarely, and then counts more:
#
# $$x_{n+1} = x_n + h \sum_k \frac{B_{k,n}}{p_k}\, D_k(t_n, x_n) + \text{noise}, \qquad E\,B_{k,n} = p_k.$$
#
# The $B$ are *coins*. This notebook is about them alone, without networks.

# %%
import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

import mlem_jax as ml

# %matplotlib inline
plt.rcParams["figure.dpi"] = 80
jax.config.update("jax_enable_x64", True)

COINS = {
    "independent (the paper)": ml.IndependentCoins(),
    "nested": ml.NestedCoins(),
    "stratified": ml.StratifiedCoins(),
    "systematic": ml.SystematicCoins(),
    "midpoint (default)": ml.SystematicCoins(offset=0.5),
}
COLOUR = dict(zip(COINS, ("C3", "C1", "C0", "C2", "k"), strict=True))


def fires(coins, table, key):
    """Counts `(N, K)` of the firings for probabilities `(N, K)`: what a solver does, without a drift."""

    def step(state, item):
        n, p = item
        count, state = coins.draw(p, state, n, key)
        return state, count

    return jax.lax.scan(step, coins.init(table.shape[1]), (jnp.arange(len(table)), table))[1]


# %% [markdown]
# ## Five coin policies
#
# Three levels over 128 steps: the first always, the second in one step of 8, the third in one of 32. The same
# number of evaluations on average, five patterns.

# %%
table = jnp.tile(jnp.array([1.0, 1 / 8, 1 / 32]), (128, 1))
figure, axes = plt.subplots(5, 1, figsize=(8, 5.2), sharex=True, layout="constrained")
for axis, (name, coins) in zip(axes, COINS.items(), strict=True):
    fired = np.asarray(fires(coins, table, jr.key(3)))
    axis.eventplot(
        [np.flatnonzero(fired[:, k]) for k in range(3)],
        lineoffsets=range(3),
        linelengths=0.7,
        colors=COLOUR[name],
    )
    axis.set_yticks(range(3), [f"level {k + 1}: {fired[:, k].sum()}" for k in range(3)], fontsize=8)
    axis.set_title(name, loc="left", fontsize=9)
axes[-1].set_xlabel("step")
plt.show()

# %% [markdown]
# Independent coins leave gaps and clusters. Nested ones use one random number for all levels, so that level 3
# fires only where level 2 does: cheaper, equally uneven. The other three spread their evaluations.
#
# ## The expected count
#
# How do they spread them when $p$ changes with time? Each level has $\Lambda(t) = \sum p$, the number of evaluations
# expected so far. One evaluation falls into each unit of $\Lambda$: at a random place of each (*stratified*), at the
# same random place of all (*systematic*), in the middle (*midpoint*).

# %%
STEPS = 400
t = (np.arange(STEPS) + 0.5) / STEPS
p = 0.004 + 0.056 * np.exp(-(((t - 0.35) / 0.16) ** 2))
p = p * 8 / p.sum()
expected = np.cumsum(p)
figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
axis.plot(t, expected, color="0.4")
for whole in range(9):
    axis.axhline(whole, color="0.85", lw=0.8, zorder=0)
shown = ["independent (the paper)", "stratified", "systematic", "midpoint (default)"]
for row, name in enumerate(shown):
    when = np.flatnonzero(np.asarray(fires(COINS[name], jnp.asarray(p)[:, None], jr.key(8)))[:, 0])
    axis.plot(t[when], expected[when], "o", ms=5, color=COLOUR[name])
    axis.plot(t[when], np.full(len(when), -1.0 - 0.7 * row), "|", ms=9, mew=1.6, color=COLOUR[name])
    axis.text(1.02, -1.0 - 0.7 * row, f"{name}: {len(when)}", color=COLOUR[name], va="center", fontsize=8)
axis.set(xlabel="time", ylabel="evaluations expected so far", xlim=(0, 1), ylim=(-3.7, 8.3), yticks=range(9))
plt.show()

# %% [markdown]
# Where $p$ is large $\Lambda$ grows fast and evaluations are dense. Between two grey lines each coupled policy has one
# evaluation; independent coins have any number.
#
# ## What even spacing is worth
#
# A solve adds up $\sum_n h\,w_n D(t_n)$ with weights $w_n = B_n / p$. How far is that from
# $\sum_n h\,D(t_n)$, for a smooth $D$ and for a rough one (a Brownian path)? Root mean square over 100 draws of the coins.

# %%
STEPS, SEEDS = 3**8, 100
t = (jnp.arange(STEPS) + 0.5) / STEPS
smooth = 1 + jnp.sin(5 * t) + 2 * t
rough = jnp.cumsum(jr.normal(jr.key(1), (SEEDS, STEPS)), 1) / STEPS**0.5
evaluations = 3 ** np.arange(1, 6)  # Windows of an odd number of steps have a step in their middle.


@jax.jit
def weighted_sums(coins, p, keys, D):
    weights = jax.vmap(lambda key: fires(coins, jnp.full((STEPS, 1), p), key)[:, 0])(keys) / p
    return jnp.mean((weights - 1) * D, 1)


figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
print("measured slopes".ljust(26) + "smooth   rough")
for name, coins in COINS.items():
    if name == "nested":
        continue  # One level alone: the same as independent.
    slopes = []
    for axis, D in zip(axes, (smooth, rough), strict=True):
        rms = [
            float(jnp.sqrt(jnp.mean(weighted_sums(coins, n / STEPS, jr.split(jr.key(5), SEEDS), D) ** 2)))
            for n in evaluations
        ]
        slopes.append(np.polyfit(np.log(evaluations), np.log(rms), 1)[0])
        axis.loglog(evaluations, rms, ".-", color=COLOUR[name], label=f"{name}: {slopes[-1]:.2f}")
    print(f"{name:26s} {slopes[0]:6.2f} {slopes[1]:7.2f}")
for axis, title in zip(axes, ("smooth increment", "rough increment (Brownian)"), strict=True):
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel("evaluations")
    axis.set_xticks(evaluations, evaluations)
    axis.set_xticks([], minor=True)
    axis.legend(title="slope", fontsize=8, loc="lower left")
axes[0].set(ylabel="RMS error of the sum", ylim=(2e-7, 2))
plt.show()

# %% [markdown]
# With $H$ the time between evaluations, theory says $H^{1/2}$ for independent coins, whatever $D$. The coupled ones only
# leave the variation of $D$ between evaluations: stratified $H^{3/2}$ if $D$ is smooth, $H$ if it is rough; midpoint
# $H^2$ and $H$; systematic $H$ (its one random phase moves all evaluations together).
#
# ## A solve whose error is known exactly
#
# Take linear levels $f^k(x) = M_k x$. With independent coins the second moment $S_n = E\,x_n x_n^T$ of the
# multilevel solution follows a recursion without any approximation:
#
# $$S \leftarrow (1 + h M_K)\, S\, (1 + h M_K)^T + h^2 \sum_k \tfrac{1 - p_k}{p_k} (M_k - M_{k-1})\, S\, (M_k - M_{k-1})^T.$$
#
# Its mean is Euler's solution on the finest level. So the coins' RMS error is known, and 400 real solves with
# `ml.MLEM` must agree with it.

# %%
M = np.array([[[-0.5, 2.0], [-2.0, -0.5]], [[-0.6, 2.6], [-2.4, -0.6]], [[-0.5, 2.8], [-2.6, -0.8]]])
STEPS, END, SOLVES = 256, 2.0, 400
h, x0 = END / STEPS, np.array([1.0, 0.5])
term = ml.MultilevelTerm(*[lambda t, y, args, m=m: m @ y for m in jnp.asarray(M)], costs=(1, 8, 64))
euler = np.linalg.matrix_power(np.eye(2) + h * M[-1], STEPS) @ x0


def exact(p):
    """The coins' RMS error, from the recursion."""
    S, step = np.outer(x0, x0), np.eye(2) + h * M[-1]
    for _ in range(STEPS):
        S = step @ S @ step.T + h**2 * sum(
            (1 - p[k]) / p[k] * (M[k] - M[k - 1]) @ S @ (M[k] - M[k - 1]).T for k in (1, 2)
        )
    return np.sqrt(np.trace(S) - euler @ euler)


@jax.jit
def ends(coins, p, keys):
    def one(key):
        # shared=False: each solve its own coins. Statistics need that; real work rarely does.
        solver = ml.MLEM(p, coins=coins, key=key, shared=False)
        saveat = diffrax.SaveAt(t1=True, solver_state=True)
        sol = diffrax.diffeqsolve(term, solver, 0.0, END, h, jnp.asarray(x0), saveat=saveat)
        return sol.ys[0], sol.solver_state.evaluations

    return jax.vmap(one)(keys)


keys = jr.split(jr.key(11), SOLVES)
third = np.array([2, 4, 8, 16, 32])
figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
mean = {}
for name, coins in COINS.items():
    costs, errors = [], []
    for n in third:
        y, evaluations = map(np.asarray, ends(coins, jnp.array([1.0, 2 * n / STEPS, n / STEPS]), keys))
        costs.append(np.mean(evaluations @ [1 / 64, 1 / 8, 1.0]))
        errors.append(np.sqrt(np.mean(np.sum((y - euler) ** 2, 1))))
        if n == 8:
            mean[name] = (y.mean(0) - euler, y.std(0) / SOLVES**0.5)
    axis.loglog(costs, errors, "o-" if "indep" not in name else "o", color=COLOUR[name], label=name)
    if "indep" in name:
        known = [exact([1.0, 2 * n / STEPS, n / STEPS]) for n in third]
        axis.loglog(costs, known, "-", lw=1, color=COLOUR[name], label="independent, exact")
        print("measured / exact:", np.round(np.array(errors) / known, 3))
axis.set(xlabel="cost in evaluations of the finest level", ylabel="RMS error of the coins at the end")
axis.set_xticks([7, 10, 20, 40], ["7", "10", "20", "40"])
axis.set_xticks([], minor=True)
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Unbiased, or not
#
# Is the mean over many draws of the coins that of Euler on the finest level? Same solves, 8 evaluations of the third level:

# %%
print("coins".ljust(26) + "bias of the end state      in standard errors")
for name, (bias, error) in mean.items():
    score = bias / np.maximum(error, 1e-12)
    scores = f"{score[0]:12.1f} {score[1]:6.1f}" if error.max() > 1e-9 else "       nothing is random"
    print(f"{name:26s} {bias[0]:+.4f}  {bias[1]:+.4f} {scores}")

# %% [markdown]
# | coins | unbiased? |
# |---|---|
# | independent, nested | each step's drift, given the past: always. The end state: if the drift is linear, as here |
# | stratified, systematic | over the coins as a whole, if the drift does not depend on the state; else a bias that vanishes with the time between evaluations |
# | midpoint | no; deterministic, so that all of its error is bias |
#
# Coupled coins trade a little bias for much variance; the picture above shows the sum of both.
#
# ## Why independent coins ask for $\gamma > 2$
#
# Suppose that level $k$ costs $2^{\gamma k}$ and corrects $2^{-k}$, and choose all times between evaluations $H_k$
# optimally. Independent coins must keep $\sum_k 4^{-k} H_k$ below $\varepsilon^2$, stratified ones
# $\sum_k 4^{-k} H_k^3 / 12$. Lagrange gives the cost:


# %%
def finest_evaluations(gamma, eps, coins):
    levels = np.arange(1, np.ceil(np.log2(1 / eps)) + 1)
    C, a = 2.0 ** (gamma * levels), 4.0**-levels
    power = 1.0 if coins == "independent" else 3.0
    a = a if coins == "independent" else a / 12
    # min sum C / H subject to sum a H**power = eps**2
    H = (C / a) ** (1 / (power + 1))
    H *= (eps**2 / np.sum(a * H**power)) ** (1 / power)
    H = np.minimum(H, 1)  # Each level at least once in a solve of length 1.
    return np.sum(C / H) / C[-1]


eps = 2.0 ** -np.arange(2, 13)
figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.4), sharey=True, layout="constrained")
for axis, gamma in zip(axes, (1.0, 2.0, 3.0), strict=True):
    axis.loglog(1 / eps, 1 / eps, "0.6", label="Euler on the finest")
    for coins, colour in (("independent", "C3"), ("stratified", "C0")):
        axis.loglog(1 / eps, [finest_evaluations(gamma, e, coins) for e in eps], colour, label=coins)
    axis.set_title(f"$\\gamma = {gamma:g}$", fontsize=10)
    axis.set_xlabel(r"accuracy $1/\varepsilon$")
axes[0].set_ylabel("evaluations of the finest level")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# A flat line is the promise of the title of Jacot's paper: any accuracy for a fixed number of evaluations of the
# finest level, total cost $\varepsilon^{-\gamma}$ instead of Euler's $\varepsilon^{-\gamma - 1}$. Independent coins are
# flat for $\gamma > 2$ only, because noise of size $H^{1/2}$ from the *cheap* levels costs $\varepsilon^{-2}$ whatever
# the networks do, and even then their constant is large. Stratified coins, on smooth increments, need
# $\gamma > 2/3$.
#
# This last picture is a calculation; real ladders need not follow it. Whether yours does, `ml.calibrate` measures:
# see `reading_calibration`.
