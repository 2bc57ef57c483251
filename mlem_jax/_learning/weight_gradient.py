r"""The derivative of ML-EM's mean-square error in the probabilities of independent coins, by sampling.

Let $x_T^{ref}$ be Euler on the finest level with the same steps and noise, and $G(w) = |x_T - x_T^{ref}|^2$ as a
function of one coin's weight $w = B / p$, all else held. Then $E G = p G(1/p) + (1 - p) G(0)$ and

$$\partial_p E G = G(1/p) - G(0) - G'(1/p) / p .$$

Every weight enters one step only. So where the drift is affine in the state, $x_T$ is affine in each single weight,
$G$ is a parabola, and its derivative is $-|\partial x_T / \partial w|^2 / p^2$: each coin's own randomness has been
integrated out, and with it the score $(B - p) / (p (1 - p))$ and the variance that it brings. For other drifts this is
the derivative of the error to first order in the weights, $\sum h^2 (1/p - 1) E |J D|^2$ (Jacot 2026; theory.md section
2); `unbiased` takes the exact formula instead, from both outcomes of the coin.

With logits $\sum_j \theta_{kj} \phi_j(t)$, hat functions $\phi_j$, and $q_{kn} = (1 - p_{kn}) / p_{kn}$,

$$\partial_{\theta_{kj}} E G = -\sum_n \phi_j(t_n) q_{kn} E |\partial x_T / \partial w_{kn}|^2
  = -Z_k E[\phi_j(t_n) |\partial x_T / \partial w_{kn}|^2], \quad n \sim q_{kn} / Z_k, \quad Z_k = \sum_n q_{kn} ,$$

one forward-mode derivative of the solve per random step $n$, so nothing is stored along the path. (All steps at once
with random signs have the same mean, but every pair of steps adds variance: up to twice the square of the mean.)
"""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._coins import IndependentCoins
from .._custom_types import Args, RealScalarLike, Y
from .._probabilities import AbstractProbabilities
from .._solver.budget import expected_evaluations
from .._term import find_multilevel_term, LevelControl


class SigmoidProbabilities(AbstractProbabilities):
    """Sigmoids of piecewise-linear functions for the learned levels, 1 for the others and from `one` on."""

    knots: Float[Array, " knots"]
    logits: Float[Array, "levels knots"]
    learned: tuple[bool, ...] = eqx.field(static=True)
    one: float = eqx.field(static=True, default=1.0)

    def hats(self, t: RealScalarLike) -> Float[Array, " knots"]:
        """The functions that are 1 at one knot and 0 at the others."""
        t = jnp.asarray(t).astype(self.knots.dtype)
        columns = jnp.eye(len(self.knots), dtype=self.knots.dtype)
        return jax.vmap(lambda column: jnp.interp(t, self.knots, column))(columns)

    def __call__(self, t: RealScalarLike, h: RealScalarLike) -> Float[Array, " levels"]:
        del h
        p = jax.nn.sigmoid(self.logits @ self.hats(t))
        return jnp.where(jnp.asarray(self.learned) & (p < self.one), p, jnp.ones_like(p))


class _Kicks(eqx.Module):
    """Coins whose weights can be differentiated. With `replace` they have these weights; else their own,
    plus these weights, which are then zero."""

    steps: Int[Array, " kicks"]
    levels: Int[Array, " kicks"]
    weights: Float[Array, " kicks"]
    replace: bool = eqx.field(static=True)


class _Kicked(diffrax.AbstractItoSolver):
    """ML-EM with independent coins, whose end state `jax.jvp` differentiates in the weights of some of them."""

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.LocalLinearInterpolation]] = (
        diffrax.LocalLinearInterpolation
    )

    probabilities: SigmoidProbabilities
    coin_key: PRNGKeyArray
    kicks: _Kicks

    def order(self, terms: PyTree) -> int:
        return 1

    def init(self, terms: PyTree, t0: Any, t1: Any, y0: Y, args: Args) -> Int[Array, ""]:
        return jnp.asarray(0, jnp.int32)

    def func(self, terms: PyTree, t0: RealScalarLike, y0: Y, args: Args) -> Any:
        return terms.vf(t0, y0, args)

    def step(
        self, terms: PyTree, t0: Any, t1: Any, y0: Y, args: Args, solver_state: Array, made_jump: Any
    ) -> tuple[Y, None, dict[str, Y], Array, diffrax.RESULTS]:
        del made_jump
        place, term = find_multilevel_term(terms)
        control = terms.contr(t0, t1)
        dt = control if place is None else control[place]
        t = jnp.where(dt >= 0, t0, -t0)  # diffeqsolve runs backward solves in the time -t
        p = self.probabilities(t, jnp.abs(dt))
        count, _ = IndependentCoins().toss(p, None, solver_state, self.coin_key)
        weights = count.astype(p.dtype) / p
        kicks, fixed = self.kicks, jax.lax.stop_gradient(self.kicks.weights)
        numbers = jnp.arange(len(p), dtype=kicks.levels.dtype)
        hits = (kicks.steps == solver_state)[:, None] & (kicks.levels[:, None] == numbers[None, :])
        hit = jnp.any(hits, axis=0)
        if kicks.replace:
            weights = jnp.where(hit, fixed @ hits.astype(p.dtype), weights)
        coefficients = _telescoped(weights)
        moves = LevelControl(dt, coefficients, coefficients != 0)
        if place is not None:
            moves = tuple(moves if i == place else c for i, c in enumerate(control))
        increment = terms.vf_prod(t0, y0, args, moves)
        # Zero in value; the derivative in a weight is what it is for. It needs an increment whether its level fires
        # or not, but no level's Jacobian; hence apart from the step itself, at a state without tangent.
        probe = _telescoped((kicks.weights - fixed) @ hits.astype(p.dtype))
        needed = hit | jnp.append(hit[1:], False)
        still = jax.lax.stop_gradient(y0)
        source = term.vf_prod(t, still, args, LevelControl(dt, probe, needed))
        y1 = jtu.tree_map(lambda y, a, b: y + a + b, y0, increment, source)
        return y1, None, dict(y0=y0, y1=y1), solver_state + 1, diffrax.RESULTS.successful


def _telescoped(weights: Float[Array, " levels"]) -> Float[Array, " levels"]:
    return weights - jnp.append(weights[1:], jnp.zeros(1, weights.dtype))


class Problem(eqx.Module):
    """What stays the same from iteration to iteration."""

    make_terms: Callable[[PRNGKeyArray], PyTree]
    ts: Float[Array, " times"]
    knots: Float[Array, " knots"]
    args: Args
    costs: Float[Array, " levels"]
    learned: tuple[bool, ...] = eqx.field(static=True)
    kicks: int = eqx.field(static=True)
    unbiased: bool = eqx.field(static=True)
    one: float = eqx.field(static=True, default=1.0)

    def probabilities(self, logits: Float[Array, "levels knots"]) -> SigmoidProbabilities:
        return SigmoidProbabilities(self.knots, logits, self.learned, self.one)

    def cost(self, logits: Float[Array, "levels knots"]) -> Float[Array, ""]:
        return expected_evaluations(self.probabilities(logits), self.ts) @ self.costs

    def end(self, solver: Any, terms: PyTree, y0: Y) -> Y:
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


def gradient_of_error(
    problem: Problem, logits: Float[Array, "levels knots"], y0s: Y, key: PRNGKeyArray
) -> tuple[Float[Array, " batch"], Float[Array, "batch levels knots"]]:
    """For each trajectory of a batch, its squared distance to the reference (mean over components) and its
    estimate of the gradient of the expectation of that."""
    coin_key, draw_key, noise_key = jr.split(key, 3)
    batch = jtu.tree_leaves(y0s)[0].shape[0]
    probabilities = problem.probabilities(logits)
    starts = problem.ts[:-1]
    p = jax.vmap(probabilities)(starts, starts)
    hats = jax.vmap(probabilities.hats)(starts)
    rows = np.flatnonzero(problem.learned)
    steps, masses = [], []
    for k in rows:
        mass = jnp.cumsum((1 - p[:, k]) / p[:, k])
        steps.append(_draw(mass, batch, problem.kicks, jr.fold_in(draw_key, k)))
        masses.append(mass[-1])
    steps, masses = jnp.concatenate(steps, axis=1), jnp.repeat(jnp.stack(masses), problem.kicks)
    levels = jnp.asarray(np.repeat(rows, problem.kicks), jnp.int32)

    def one(y0: Y, steps: Array, noise_key: Array) -> tuple[Array, Array]:
        terms = problem.make_terms(noise_key)
        reference = problem.end(diffrax.Euler(), terms, y0)

        def from_reference(*kicks: Any) -> Y:
            # Coins are shared by the batch, as in MLEM: levels that do not fire are then not evaluated.
            end = problem.end(_Kicked(probabilities, coin_key, _Kicks(*kicks)), terms, y0)
            return jtu.tree_map(jnp.subtract, end, reference)

        def parabola(tangent: Array) -> tuple[Y, Y]:
            zeros = jnp.zeros_like(tangent)
            return jax.jvp(lambda w: from_reference(steps, levels, w, False), (zeros,), (tangent,))

        def coupled(step: Array, level: Array, p: Array) -> tuple[Array, Array]:
            def outcome(weight: Array) -> tuple[Array, Array]:
                def square(w: Array) -> Array:
                    distance = from_reference(step[None], level[None], w[None], True)
                    return _dot(distance, distance).astype(p.dtype)

                return jax.jvp(square, (weight,), (jnp.ones_like(weight),))

            (miss, fire), (_, slope) = jax.vmap(outcome)(jnp.stack([jnp.zeros_like(p), 1 / p]))
            return (1 - p) * miss + p * fire, p * slope - p**2 * (fire - miss)

        if problem.unbiased:
            errors, squares = jax.vmap(coupled)(steps, levels, p[steps, levels])
            error = jnp.mean(errors)
        else:
            distances, tangents = jax.vmap(parabola)(jnp.eye(len(levels), dtype=p.dtype))
            error = _dot(*(jtu.tree_map(lambda leaf: leaf[0], distances),) * 2).astype(p.dtype)
            squares = jax.vmap(_dot)(tangents, tangents).astype(p.dtype)
        shares = -(masses * squares / problem.kicks)[:, None] * hats[steps]
        return error, jnp.zeros_like(logits).at[levels].add(shares)

    return jax.vmap(one)(y0s, steps, jr.split(noise_key, batch))


def _draw(
    mass: Float[Array, " steps"], batch: int, number: int, key: PRNGKeyArray
) -> Int[Array, "batch number"]:
    """Random steps with the law whose cumulative masses are given. Each one has that law; together they are
    spread evenly over it."""
    shuffle_key, shift_key = jr.split(key)
    slots = jr.permutation(shuffle_key, batch * number).astype(mass.dtype)
    places = (slots + jr.uniform(shift_key, (), mass.dtype)) / (batch * number)
    steps = jnp.searchsorted(mass, places * mass[-1], side="right")
    return jnp.minimum(steps, len(mass) - 1).reshape(batch, number).astype(jnp.int32)


def _dot(a: Y, b: Y) -> Float[Array, ""]:
    """Mean over the state's components."""
    products = [jnp.sum(u * v) for u, v in zip(jtu.tree_leaves(a), jtu.tree_leaves(b), strict=True)]
    size = sum(leaf.size for leaf in jtu.tree_leaves(a))
    return jnp.sum(jnp.stack(products)) / size
