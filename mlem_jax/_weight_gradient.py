r"""The derivative of ML-EM's mean-square error in the probabilities of independent coins, by sampling.

Let `x_T^ref` be Euler on the finest level with the same steps and noise, and $G(w) = |x_T - x_T^{ref}|^2$ as a function
of one coin's weight $w = B / p$, all else held. Then $E G = p G(1/p) + (1 - p) G(0)$ and

$$\partial_p E G = G(1/p) - G(0) - G'(1/p) / p .$$

Every weight enters one step only. So where the drift is affine in the state, $x_T$ is affine in each single weight,
$G$ is a parabola, and its derivative is $-c / p^2$ with $c = |\partial x_T / \partial w|^2$: each coin's own randomness
has been integrated out, and with it the score $(B - p) / (p (1 - p))$ and the variance that it brings. For other
drifts this is the derivative of the error to first order in the weights, $\sum h^2 (1/p - 1) E |J D|^2$ (Jacot 2026;
theory.md section 2), and `unbiased` adds the difference of the two formulas at one random coin per trajectory, from
both of its outcomes.

With logits $\sum_j \theta_{kj} \phi_j(t)$, hat functions $\phi_j$, this sums up to

$$\partial_{\theta_{kj}} E G = -\sum_n \phi_j(t_n) \frac{1 - p_{kn}}{p_{kn}} E |\partial x_T / \partial w_{kn}|^2
  = -E |\dot x_{kj}|^2 ,$$

$\dot x_{kj}$ being the derivative of the end state in the random direction $\dot w_{kn} = \epsilon_{kn}
\sqrt{\phi_j(t_n) (1 - p_{kn}) / p_{kn}}$ with independent signs $\epsilon$ (Hutchinson's estimator of a trace). It is
taken in forward mode with signs drawn step by step, so nothing is stored along the path.
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

from ._budget import expected_evaluations
from ._coins import IndependentCoins
from ._probabilities import AbstractProbabilities
from ._term import find_multilevel_term, LevelControl
from ._types import Args, RealScalarLike, Y


class SigmoidProbabilities(AbstractProbabilities):
    """Sigmoids of piecewise-linear functions for the learned levels, 1 for the others."""

    knots: Float[Array, " knots"]
    logits: Float[Array, "levels knots"]
    learned: tuple[bool, ...] = eqx.field(static=True)

    def hats(self, t: RealScalarLike) -> Float[Array, " knots"]:
        """The functions that are 1 at one knot and 0 at the others."""
        t = jnp.asarray(t).astype(self.knots.dtype)
        columns = jnp.eye(len(self.knots), dtype=self.knots.dtype)
        return jax.vmap(lambda column: jnp.interp(t, self.knots, column))(columns)

    def __call__(self, t: RealScalarLike, h: RealScalarLike) -> Float[Array, " levels"]:
        del h
        p = jax.nn.sigmoid(self.logits @ self.hats(t))
        return jnp.where(jnp.asarray(self.learned), p, jnp.ones_like(p))


class _OneCoin(eqx.Module):
    """A coin whose weight is given."""

    step: Int[Array, ""]
    level: Int[Array, ""]
    weight: Float[Array, ""]


class _Probed(diffrax.AbstractItoSolver):
    """ML-EM with independent coins whose end state can be differentiated in the weights, with `jax.jvp` with
    respect to `direction` (at zero) or the weight of `given`."""

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.LocalLinearInterpolation]] = (
        diffrax.LocalLinearInterpolation
    )

    probabilities: SigmoidProbabilities
    coin_key: PRNGKeyArray
    sign_key: PRNGKeyArray
    direction: Float[Array, "levels knots"]
    given: _OneCoin | None = None

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
        signs = jr.rademacher(jr.fold_in(self.sign_key, solver_state), p.shape, p.dtype)
        probe = signs * jnp.sqrt((1 - p) / p) * (self.direction @ jnp.sqrt(self.probabilities.hats(t)))
        learned = np.array(self.probabilities.learned)
        needed = jnp.asarray(learned | np.append(learned[1:], False))
        if self.given is not None:
            hit = (solver_state == self.given.step) & (jnp.arange(len(p)) == self.given.level)
            fixed = jax.lax.stop_gradient(self.given.weight)
            weights = jnp.where(hit, fixed, weights)
            # Zero in value; the derivative is what it is for.
            probe = jnp.where(hit, self.given.weight - fixed, jnp.zeros_like(p))
            needed = needed & (solver_state == self.given.step)

        coefficients = _telescoped(weights)
        moves = LevelControl(dt, coefficients, coefficients != 0)
        if place is not None:
            moves = tuple(moves if i == place else c for i, c in enumerate(control))
        increment = terms.vf_prod(t0, y0, args, moves)
        # The derivative in the weights of a step needs all increments, but no Jacobian of a level that did not
        # fire; hence apart from the step itself, at a state without tangent.
        still = jax.lax.stop_gradient(y0)
        source = term.vf_prod(t, still, args, LevelControl(dt, _telescoped(probe), needed))
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
    directions: int = eqx.field(static=True)
    unbiased: bool = eqx.field(static=True)

    def probabilities(self, logits: Float[Array, "levels knots"]) -> SigmoidProbabilities:
        return SigmoidProbabilities(self.knots, logits, self.learned)

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
    coin_key, order_key, *keys = jr.split(key, 5)
    batch = jtu.tree_leaves(y0s)[0].shape[0]
    probabilities = problem.probabilities(logits)
    rows = np.flatnonzero(problem.learned)
    levels, knots = (x.ravel() for x in np.meshgrid(rows, np.arange(logits.shape[1]), indexing="ij"))
    # Trajectories take turns, so that a batch treats all parameters (nearly) equally often.
    turns = np.arange(batch)[:, None] * problem.directions + np.arange(problem.directions)[None, :]
    chosen = jr.permutation(order_key, len(levels))[turns % len(levels)]

    def one(y0: Y, chosen: Array, noise_key: Array, sign_key: Array, pick_key: Array) -> tuple[Array, Array]:
        terms = problem.make_terms(noise_key)
        reference = problem.end(diffrax.Euler(), terms, y0)
        # Coins are shared by the batch, like in MLEM: levels that do not fire are then not evaluated.
        solver = _Probed(probabilities, coin_key, sign_key, jnp.zeros_like(logits))
        level, knot = jnp.asarray(levels)[chosen], jnp.asarray(knots)[chosen]
        one_hot = jax.vmap(lambda k, j: jnp.zeros_like(logits).at[k, j].set(1))(level, knot)

        def moved(direction: Array) -> Y:
            return problem.end(eqx.tree_at(lambda s: s.direction, solver, direction), terms, y0)

        def push(direction: Array) -> tuple[Y, Y]:
            return jax.jvp(moved, (jnp.zeros_like(logits),), (direction,))

        ends, tangents = jax.vmap(push)(one_hot)
        distance = jtu.tree_map(lambda x, r: x[0] - r, ends, reference)
        squares = jax.vmap(lambda x: _dot(x, x))(tangents).astype(logits.dtype)
        scale = len(levels) / problem.directions
        gradient = jnp.zeros_like(logits).at[level, knot].add(-scale * squares)
        if problem.unbiased:
            gradient = gradient + _remainder(problem, solver, terms, y0, reference, pick_key)
        return _dot(distance, distance).astype(logits.dtype), gradient

    return jax.vmap(one)(y0s, chosen, *(jr.split(k, batch) for k in keys))


def _remainder(
    problem: Problem, solver: _Probed, terms: PyTree, y0: Y, reference: Y, key: PRNGKeyArray
) -> Float[Array, "levels knots"]:
    """The exact derivative less the parabola's, at one coin drawn from all, times the number of coins."""
    rows = np.flatnonzero(problem.learned)
    steps = problem.ts.shape[0] - 1
    index = jr.randint(key, (), 0, steps * len(rows))
    step, level = index // len(rows), jnp.asarray(rows)[index % len(rows)]
    t = problem.ts[step]
    p = solver.probabilities(t, t)[level]

    def end(weight: Array) -> Y:
        return problem.end(eqx.tree_at(lambda s: s.given.weight, given, weight), terms, y0)

    def push(weight: Array) -> tuple[Y, Y]:
        return jax.jvp(end, (weight,), (jnp.ones_like(weight),))

    given = _Probed(
        solver.probabilities, solver.coin_key, solver.sign_key, solver.direction, _OneCoin(step, level, p)
    )
    # Both outcomes of the coin, all other coins and the noise the same.
    ends, tangents = jax.vmap(push)(jnp.stack([jnp.zeros_like(p), 1 / p]))
    distances = jax.vmap(lambda x: jtu.tree_map(jnp.subtract, x, reference))(ends)
    miss, fire = jax.vmap(_dot)(distances, distances)
    slope = 2 * jax.vmap(_dot)(distances, tangents)[1]
    steep = jax.vmap(_dot)(tangents, tangents)
    exact = fire - miss - slope / p
    parabola = -((1 - p) * steep[0] + p * steep[1]) / p**2
    weight = (exact - parabola).astype(p.dtype) * (p * (1 - p) * steps * len(rows))
    return jnp.zeros_like(solver.direction).at[level].set(weight * solver.probabilities.hats(t))


def _dot(a: Y, b: Y) -> Float[Array, ""]:
    """Mean over the state's components."""
    products = [jnp.sum(u * v) for u, v in zip(jtu.tree_leaves(a), jtu.tree_leaves(b), strict=True)]
    size = sum(leaf.size for leaf in jtu.tree_leaves(a))
    return jnp.sum(jnp.stack(products)) / size
