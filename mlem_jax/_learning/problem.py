"""The optimisation problem of `learn_probabilities`: probabilities as functions of logits, and what they cost."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from .._custom_types import Args, RealScalarLike, Y
from .._probabilities import AbstractProbabilities
from .._solver import expected_evaluations
from .._term import MakeTerms

# Logits are clipped to [-9, 9]: there 1 - p is at least 1.2e-4, which float32 resolves to 5e-4 of itself. At 18 it
# would round to 0; at 4.5 no level could fire more rarely than in 1% of the steps.
LOGIT_LIMIT = 9.0


class SigmoidProbabilities(AbstractProbabilities):
    """Probabilities of the learned levels: sigmoids of piecewise linear functions of time, which are rounded up to 1
    from `one` on. Levels that are not learned have probability 1."""

    knots: Float[Array, " knots"]
    logits: Float[Array, "levels knots"]
    learned: tuple[bool, ...] = eqx.field(static=True)
    one: float = eqx.field(static=True, default=1.0)

    def hats(self, t: RealScalarLike) -> Float[Array, " knots"]:
        """The hat functions at time `t`: each is 1 at one knot, 0 at the others and linear between them."""
        t = jnp.asarray(t).astype(self.knots.dtype)
        columns = jnp.eye(len(self.knots), dtype=self.knots.dtype)
        return jax.vmap(lambda column: jnp.interp(t, self.knots, column))(columns)

    def __call__(self, t: RealScalarLike, h: RealScalarLike) -> Float[Array, " levels"]:
        del h
        p = jax.nn.sigmoid(self.logits @ self.hats(t))
        return jnp.where(jnp.asarray(self.learned) & (p < self.one), p, jnp.ones_like(p))


class Problem(eqx.Module):
    """The data and settings that are the same in all iterations.

    - `make_terms`: a function of a random key that returns the terms of one trajectory.
    - `ts`: times of the steps; `knots`: increasing times of the knots.
    - `costs`: of one evaluation of each level, in evaluations of the finest one.
    - `learned`: which levels are learned; `perturbations`, `unbiased`, `one`: see `learn_probabilities` and
        `SigmoidProbabilities`.
    """

    make_terms: MakeTerms
    ts: Float[Array, " times"]
    knots: Float[Array, " knots"]
    args: Args
    costs: Float[Array, " levels"]
    learned: tuple[bool, ...] = eqx.field(static=True)
    perturbations: int = eqx.field(static=True)
    unbiased: bool = eqx.field(static=True)
    one: float = eqx.field(static=True, default=1.0)

    def probabilities(self, logits: Float[Array, "levels knots"]) -> SigmoidProbabilities:
        """The probabilities with these logits at the knots."""
        return SigmoidProbabilities(self.knots, logits, self.learned, self.one)

    def cost(self, logits: Float[Array, "levels knots"]) -> Float[Array, ""]:
        """The expected cost of a solve, in evaluations of the finest level."""
        return expected_evaluations(self.probabilities(logits), self.ts) @ self.costs

    def end(self, solver: Any, terms: PyTree, y0: Y) -> Y:
        """The end state of one trajectory."""
        sol = diffrax.diffeqsolve(
            terms,
            solver,
            self.ts[0],
            self.ts[-1],
            None,
            y0,
            self.args,
            stepsize_controller=diffrax.StepTo(self.ts),
            adjoint=diffrax.ForwardMode(),
            max_steps=None,
        )
        return jtu.tree_map(lambda leaf: leaf[-1], sol.ys)
