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
# # mlem_jax in ten minutes
#
# Some drifts exist at several levels of accuracy and cost: networks of growing size, force fields with and
# without the far field. Multilevel Euler-Maruyama (ML-EM) steps with the cheap level nearly everywhere, evaluates
# the expensive one in a few steps only, and weights those so that the result is that of the expensive one.
#
# First a toy SDE, then four UNets that draw clothes.

# %%
import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

import mlem_jax as ml
from mlem_jax import plot
from mlem_jax.diffusion import load_ladder

# %% [markdown]
# ## A toy SDE
#
# $dx = (F(x) - x)\,dt + 0.3\,dW$ in 16 dimensions, where $F$ is a sum of 4096 random features. The cheap level
# keeps 64 of them: the sum's first and largest terms. An ordinary diffrax solve of the expensive drift:

# %%
DIM, FEATURES = 16, 4096
keys = jr.split(jr.key(0), 4)
frequencies = jr.normal(keys[0], (FEATURES, DIM))
amplitudes = jr.normal(keys[1], (FEATURES, DIM)) / (1 + jnp.arange(FEATURES)[:, None]) ** 0.9


def drift_with(features):
    def drift(t, y, args):
        return jnp.sin(frequencies[:features] @ y + t) @ amplitudes[:features] - y

    return drift


cheap, expensive = drift_with(64), drift_with(FEATURES)

STEPS = 512
ts = jnp.linspace(0.0, 2.0, STEPS + 1)
noise = ml.GridBrownianPath(ts, (DIM,), key=keys[2])
diffusion = diffrax.ControlTerm(lambda t, y, args: 0.3 * jnp.eye(DIM), noise)
y0 = jnp.ones(DIM)

terms = diffrax.MultiTerm(diffrax.ODETerm(expensive), diffusion)
solution = diffrax.diffeqsolve(terms, diffrax.Euler(), 0.0, 2.0, 2.0 / STEPS, y0)
reference = solution.ys[-1]

# %% [markdown]
# The multilevel solve changes two expressions: `ODETerm(expensive)` becomes `MultilevelTerm(cheap, expensive)`, and
# `Euler()` becomes `MLEM(...)`. Here the cheap level runs in every step and the correction in one of 32.

# %%
terms = diffrax.MultiTerm(ml.MultilevelTerm(cheap, expensive, costs=(64, FEATURES)), diffusion)
solver = ml.MLEM([1.0, 1 / 32], key=jr.key(1))
saveat = diffrax.SaveAt(t1=True, solver_state=True)
solution = diffrax.diffeqsolve(terms, solver, 0.0, 2.0, 2.0 / STEPS, y0, saveat=saveat)

print("distance to the expensive drift:", float(jnp.linalg.norm(solution.ys[-1] - reference)))
print(ml.evaluation_report(solution.solver_state))

# %% [markdown]
# Is that better than Euler with fewer steps? All runs below see the same Brownian path: `GridBrownianPath` gives
# coarse steps the sums of the fine increments. Random coins are averaged over ten seeds (bars: standard
# deviation); the default coins are evenly spaced.


# %%
@jax.jit
def end_and_cost(solver, p):
    solver = ml.MLEM(jnp.stack([jnp.ones_like(p), p]), coins=solver.coins, key=solver.key)
    sol = diffrax.diffeqsolve(terms, solver, 0.0, 2.0, 2.0 / STEPS, y0, saveat=saveat)
    return sol.ys[-1], sol.solver_state.evaluations


def euler_error(steps):
    sol = diffrax.diffeqsolve(terms, diffrax.Euler(), 0.0, 2.0, 2.0 / steps, y0)
    return float(jnp.linalg.norm(sol.ys[-1] - reference))


figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
euler_steps = [8, 16, 32, 64, 128]
axis.loglog(euler_steps, [euler_error(n) for n in euler_steps], "k.-", label="Euler, expensive drift")
probabilities = 1 / np.array([128, 64, 32, 16, 8, 4])
for name, coins in {
    "independent (the paper)": ml.IndependentCoins(),
    "stratified": ml.StratifiedCoins(),
    "evenly spaced (default)": ml.SystematicCoins(offset=0.5),
}.items():
    costs, means, spreads = [], [], []
    for p in probabilities:
        runs = []
        for seed in range(10):
            end, evaluations = end_and_cost(
                ml.MLEM([1.0, 1.0], coins=coins, key=jr.key(seed)), jnp.asarray(p)
            )
            cost = float(evaluations[1] + evaluations[0] * 64 / FEATURES)
            runs.append((cost, float(jnp.linalg.norm(end - reference))))
        costs.append(np.mean([c for c, _ in runs]))
        means.append(np.mean([e for _, e in runs]))
        spreads.append(np.std([e for _, e in runs]))
    axis.errorbar(costs, means, yerr=spreads, fmt=".-", label=name)
axis.set_xlabel("cost in evaluations of the expensive drift")
axis.set_ylabel("error at the end, same noise")
axis.legend()
plt.show()

# %% [markdown]
# The cheap level alone costs 8 of these evaluations (512 steps at 1/64 each); that is the left end. With two
# levels this close together the gain is what the picture shows; where nothing is gained, use Euler.
#
# ## Four UNets
#
# The package ships four networks trained on Fashion-MNIST, each about five times as expensive as the one before.
# `ladder.term()` is a `MultilevelTerm` like the one above: the drift of the probability flow in the variables
# $y = x/\alpha$, $s = \sigma/\alpha$, where plain Euler is DDIM.

# %%
ladder = load_ladder()
process, term = ladder.config.process, ladder.term()
print("parameters:", ladder.card["parameters"])
print("cost:", [round(c / term.costs[-1], 4) for c in term.costs], "of a finest evaluation")

# %% [markdown]
# How large are the corrections, and where do they matter? `calibrate` measured both along trajectories of the
# finest network: the increments, and how far an increment in one step moves the final image.

# %%
calibration = ladder.calibration()
plot.increments(calibration, time_label="s", log_time=True)

# %% [markdown]
# `print(calibration)` says the same in numbers, with the measured gamma, kurtosis and warnings. One number, a budget or
# a target error, turns it into a plan: which levels, how many steps, when each level is evaluated, and the error
# to expect.

# %%
plan = calibration.plan(budget=12)
print(plan)

# %% [markdown]
# Eight images with that plan, beside Euler on the finest network at the same cost:

# %%
grid = process.grid(128)
y0 = process.s_max * jr.normal(jr.key(7), (8, *ladder.config.shape))


def draw(term, solver, grid):
    return diffrax.diffeqsolve(
        term,
        solver,
        grid[0],
        grid[-1],
        None,
        y0,
        stepsize_controller=diffrax.StepTo(grid),
        saveat=diffrax.SaveAt(t1=True, solver_state=True),
    )


multilevel = draw(plan.terms(term), plan.solver(key=jr.key(0), record=len(plan.ts) - 1), plan.grid)
report = ml.evaluation_report(multilevel.solver_state)
print(report)

many = draw(term, diffrax.Euler(), process.grid(256))
few = draw(term, diffrax.Euler(), process.grid(12))
for name, run in {"ML-EM, cost 12": multilevel, "Euler, 12 steps": few}.items():
    error = float(jnp.sqrt(jnp.mean((run.ys - many.ys) ** 2)))
    print(f"{name}: RMS distance to Euler with 256 steps {error:.3f}")

# %%
rows = {"Euler, 256 steps": many, "ML-EM, cost 12": multilevel, "Euler, 12 steps": few}
figure = plot.samples([(name, np.asarray(run.ys[0])[..., 0]) for name, run in rows.items()])
figure

# %% [markdown]
# When was each level evaluated? (Sampling goes from right to left.)

# %%
plot.firings([("default coins", report)], levels=[plan.levels], time_label="s", log_time=True)

# %% [markdown]
# Next: your own SDE (`own_sde`), the command line (`mlem-jax --help`), and the documentation's page about coins, which says
# in what sense each policy is unbiased.
