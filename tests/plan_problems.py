"""Linear levels, and solves with plans made for them."""

import dataclasses

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

DIM, STEPS, PILOTS = 6, 32, 32
COSTS = (1.0, 6.0, 36.0)
TS = jnp.linspace(0.0, 2.0, STEPS + 1)
Y0S = jr.normal(jr.key(4), (PILOTS, DIM))


def linear_levels(sizes, seed=0):
    """`f^k = A_k y`, the finest with matrix `-1 + random`, and each cheaper one `size` away from the next."""
    matrix = -jnp.eye(DIM) + 0.3 * jr.normal(jr.key(seed), (DIM, DIM)) / DIM**0.5
    matrices = [matrix]
    for k, size in enumerate(reversed(sizes)):
        change = jr.normal(jr.key(seed + k + 1), (DIM, DIM)) / DIM**0.5
        matrices.insert(0, matrices[0] + size * change)
    return [lambda t, y, args, m=m: m @ y for m in matrices]


def solve(term, plan, solver, y0s=Y0S):
    """End states of a batch and the solver's state."""

    def one(y0):
        return diffrax.diffeqsolve(
            plan.terms(term),
            solver,
            plan.grid[0],
            plan.grid[-1],
            None,
            y0,
            stepsize_controller=diffrax.StepTo(plan.grid),
            saveat=diffrax.SaveAt(t1=True, solver_state=True),
        )

    sol = jax.vmap(one)(y0s)
    return sol.ys[:, 0], sol.solver_state


def euler(term, plan):
    return solve(term, dataclasses.replace(plan, levels=(0, 1, 2), costs=np.array(COSTS)), diffrax.Euler())[0]
