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
# # Your own SDE or ODE
#
# You have diffrax code, an expensive drift, and a cheaper one that is nearly right. Here, probes fly through
# a galaxy of 16384 stars, with drag and random accelerations.
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
STEPS, END = 512, 4.0
fine = jnp.linspace(0.0, END, 2 * STEPS + 1)
acceleration = jnp.concatenate([jnp.zeros((2, 2)), 0.1 * jnp.eye(2)])


def with_noise(term, key):
    path = ml.GridBrownianPath(fine, (2,), key=key)
    return diffrax.MultiTerm(term, diffrax.ControlTerm(lambda t, y, args: acceleration, path))


y0 = jnp.array([1.5, 0.0, 0.0, 1.3])
terms = with_noise(diffrax.ODETerm(expensive), jr.key(0))
single = diffrax.diffeqsolve(terms, diffrax.Euler(), 0.0, END, END / STEPS, y0)
print("end:", single.ys[0])

# %% [markdown]
# ## The two words that change
#
# `ODETerm(expensive)` becomes `MultilevelTerm(cheap, expensive)`, and `Euler()` becomes `MLEM(...)`. The lumps pull in
# every step, all stars in one of 16:

# %%
cheap = Galaxy(*lump(8))
levels = ml.MultilevelTerm(cheap, expensive)
print("bodies:", [len(level.masses) for level in levels.levels])

solver = ml.MLEM([1.0, 1 / 16], key=jr.key(1))
saveat = diffrax.SaveAt(t1=True, solver_state=True)
terms = with_noise(levels, jr.key(0))
multi = diffrax.diffeqsolve(terms, solver, 0.0, END, END / STEPS, y0, saveat=saveat)
print("end:", multi.ys[0])
print("evaluations:", multi.solver_state.evaluations)

# %% [markdown]
# Nearly the same end, with 32 evaluations of all stars instead of 512. Both runs use the same Brownian path, and so does a
# run with any other step that fits the grid. That is what `GridBrownianPath` is for.
#
# ## Calibrate, plan
#
# How often should all stars be evaluated? Measure along 16 pilot trajectories, each with its own noise:


# %%
class MakeTerms(eqx.Module):
    levels: ml.MultilevelTerm

    def __call__(self, key):
        return with_noise(self.levels, key)


def starts(key, n):
    turn = 2 * jnp.pi * jr.uniform(key, (n, 1))
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    y = jnp.concatenate([1.5 * cos, 1.5 * sin, -1.3 * sin, 1.3 * cos], 1)
    return y + 0.05 * jr.normal(key, (n, 4))


MIDPOINT = ml.SystematicCoins(offset=0.5)
ts = fine[::2]
calibration = ml.calibrate(
    MakeTerms(levels), ts, starts(jr.key(2), 16), key=jr.key(3), trials=(MIDPOINT,), progress=False
)
print(calibration)

# %%
plans = [calibration.plan(budget=budget) for budget in (8, 16, 32)]
print(plans[1])

# %% [markdown]
# ## Solve: 32 fresh probes
#
# `vmap` over the start and the noise; the solver stays outside, so that all probes share their coins. Errors are path
# by path, against a second-order method on all stars with 1024 steps (`MLAB2` with all probabilities 1).

# %%
y0s, keys = starts(jr.key(4), 32), jr.split(jr.key(5), 32)


@eqx.filter_jit
def solve(solver, levels, grid, saveat, event=None):
    def one(y0, key):
        return diffrax.diffeqsolve(
            with_noise(levels, key),
            solver,
            grid[0],
            grid[-1],
            None,
            y0,
            stepsize_controller=diffrax.StepTo(grid),
            saveat=saveat,
            event=event,
        )

    return jax.vmap(one)(y0s, keys)


def error(sol):
    return float(jnp.sqrt(jnp.mean((sol.ys[:, -1] - reference) ** 2)))


exact_steps = ml.MLAB2([1.0, 1.0], key=jr.key(0))
reference = solve(exact_steps, levels, fine, saveat).ys[:, -1]
euler = {
    n: error(solve(diffrax.Euler(), levels, fine[:: 1024 // n], saveat)) for n in (32, 64, 128, 256, 512)
}
found = []
for plan in plans:
    sol = solve(plan.solver(key=jr.key(6)), plan.terms(levels), plan.grid, saveat)
    used = np.asarray(sol.solver_state.evaluations)[0] @ plan.costs if len(plan.levels) > 1 else plan.cost
    found.append((float(used), error(sol)))
    needs = np.exp(np.interp(-np.log(found[-1][1]), -np.log(list(euler.values())), np.log(list(euler))))
    print(
        f"cost {used:5.1f}: error {found[-1][1]:.3f} (predicted {plan.error:.3f}); Euler needs {needs:.0f} evaluations"
    )

# %%
figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
axis.loglog(list(euler), list(euler.values()), "k.-", label="Euler, all stars")
axis.loglog(*zip(*found, strict=True), "C0o-", label="ML-EM")
axis.loglog([p.cost for p in plans], [p.error for p in plans], "C0+", ms=12, label="ML-EM, predicted")
axis.set(xlabel="cost in evaluations of all stars", ylabel="RMS error at the end, same noise")
axis.grid(alpha=0.3, which="both")
axis.legend()
plt.show()

# %% [markdown]
# The smallest budget is too small to evaluate all stars, so that plan uses the lumps alone. The error of the middle plan is 1.4 times
# the predicted one, more than the ± in the plan allows: 16 pilots are few, and so are 14 evaluations.
#
# ## It stays diffrax
#
# Save along the way, and stop a probe that comes too close to the centre: `SaveAt(ts=...)` and `Event` work as in diffrax.

# %%
plan = plans[-1]
times = jnp.linspace(0.0, END, 129)
caught = diffrax.Event(lambda t, y, args, **kwargs: jnp.hypot(y[0], y[1]) < 0.5)
paths = diffrax.SaveAt(ts=times)
flown = solve(plan.solver(key=jr.key(6)), plan.terms(levels), plan.grid, paths, caught)
truth = solve(diffrax.Euler(), levels, ts, paths, caught)
print("stopped:", int(jnp.sum(jnp.isinf(flown.ys[:, -1, 0]))), "of 32; with Euler on all stars:", end=" ")
print(int(jnp.sum(jnp.isinf(truth.ys[:, -1, 0]))))

figure, axis = plt.subplots(figsize=(5.4, 5.4), layout="constrained")
axis.scatter(*stars[::3].T, s=0.3, color="0.8", linewidths=0, rasterized=True)
axis.add_patch(plt.Circle((0, 0), 0.5, fill=False, color="C3", ls=":"))
for i in range(8):
    axis.plot(*np.asarray(truth.ys[i, :, :2]).T, color="0.45", lw=4, alpha=0.5)
    axis.plot(*np.asarray(flown.ys[i, :, :2]).T, color=f"C{i}", lw=1.2)
axis.set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), aspect="equal", xticks=[], yticks=[])
axis.set_title("eight probes: ML-EM (coloured) on Euler with 512 looks (grey)", fontsize=9)
plt.show()

# %% [markdown]
# ## Without noise: `MLAB2`
#
# For an ODE pass the bare term. For steps of second order use `MLAB2` instead of `MLEM`, planned with
# `method=ml.AdamsBashforth()`. It is compared with the same method on all stars (Adams-Bashforth) and with Euler.

# %%
coarse = fine[::8]
second = ml.calibrate(
    levels,
    coarse,
    starts(jr.key(2), 16),
    key=jr.key(3),
    method=ml.AdamsBashforth(),
    trials=(MIDPOINT,),
    progress=False,
)


@eqx.filter_jit
def fly(solver, levels, grid):
    def one(y0):
        control = diffrax.StepTo(grid)
        sol = diffrax.diffeqsolve(levels, solver, grid[0], grid[-1], None, y0, stepsize_controller=control)
        return sol.ys[-1]

    return jax.vmap(one)(y0s)


reference = fly(exact_steps, levels, fine)


def distance(ends):
    return float(jnp.sqrt(jnp.mean((ends - reference) ** 2)))


rows = []
for budget in (6, 12, 24):
    plan = second.plan(budget=budget)
    kept = [k + 1 for k in plan.levels]
    rows.append(
        (
            f"MLAB2, levels {kept}",
            plan.cost,
            distance(fly(plan.solver(key=jr.key(6)), plan.terms(levels), plan.grid)),
        )
    )
rows += [("AB2, all stars", n, distance(fly(exact_steps, levels, fine[:: 1024 // n]))) for n in (16, 32, 64)]
rows += [
    ("Euler, all stars", n, distance(fly(diffrax.Euler(), levels, fine[:: 1024 // n]))) for n in (64, 512)
]
for name, cost, value in rows:
    print(f"{name:24s} cost {cost:5.1f}  error {value:.4f}")

# %% [markdown]
# The plans are far cheaper than Euler but only a little cheaper than Adams-Bashforth on all stars: a smooth orbit needs few
# evaluations of anything with steps of second order, so little is left to save. Where the lumps alone are accurate enough, or
# no plan beats all stars in every step, the plan says so;
# `reading_calibration` shows how.
