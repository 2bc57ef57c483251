r"""The derivative of ML-EM's mean-square error with respect to the probabilities of independent coins, by sampling.

Let $x_T^{ref}$ be Euler on the finest level with the same steps and noise, and $G(w) = |x_T - x_T^{ref}|^2$ as a
function of one weight $w = B / p$, with everything else fixed. Then $E G = p G(1/p) + (1 - p) G(0)$ and

$$\partial_p E G = G(1/p) - G(0) - G'(1/p) / p .$$

Every weight enters one step only. If the drift is affine in the state, then $x_T$ is affine in each single weight,
$G$ is a parabola, and its derivative is $-|\partial x_T / \partial w|^2 / p^2$. The randomness of the coin itself has
been integrated out, and with it the score $(B - p) / (p (1 - p))$ and its variance. For other drifts this is the
derivative of the error to first order in the weights, $\sum h^2 (1/p - 1) E |J D|^2$ (Jacot 2026; docs/theory.md,
"Probabilities"); `unbiased` uses the exact formula instead, with both outcomes of the coin.

With logits $\sum_j \theta_{kj} \phi_j(t)$, hat functions $\phi_j$, and $q_{kn} = (1 - p_{kn}) / p_{kn}$,

$$\partial_{\theta_{kj}} E G = -\sum_n \phi_j(t_n) q_{kn} E |\partial x_T / \partial w_{kn}|^2
  = -Z_k E[\phi_j(t_n) |\partial x_T / \partial w_{kn}|^2], \quad n \sim q_{kn} / Z_k, \quad Z_k = \sum_n q_{kn} ,$$

that is, one forward-mode derivative of the solve per random step $n$, which stores nothing along the trajectory. (A
derivative in all steps at once with random signs has the same mean, but every pair of steps adds variance: up to twice
the square of the mean.)
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

from .._coins import IndependentCoins, level_coefficients
from .._custom_types import Args, RealScalarLike, Y
from .._term import find_multilevel_term, LevelControl
from .problem import Problem, SigmoidProbabilities


class _Perturbations(eqx.Module):
    """Steps and levels whose weights are differentiated. With `replace`, `weights` are used instead of the drawn ones;
    otherwise they are zero and are added to them."""

    steps: Int[Array, " perturbations"]
    levels: Int[Array, " perturbations"]
    weights: Float[Array, " perturbations"]
    replace: bool = eqx.field(static=True)


class _PerturbedMLEM(diffrax.AbstractItoSolver):
    """ML-EM with independent coins, whose end state `jax.jvp` can differentiate with respect to some of the weights."""

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.LocalLinearInterpolation]] = (
        diffrax.LocalLinearInterpolation
    )

    probabilities: SigmoidProbabilities
    coin_key: PRNGKeyArray
    perturbations: _Perturbations

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
        count, _ = IndependentCoins().draw(p, None, solver_state, self.coin_key)
        weights = count.astype(p.dtype) / p
        perturbed, fixed = self.perturbations, jax.lax.stop_gradient(self.perturbations.weights)
        numbers = jnp.arange(len(p), dtype=perturbed.levels.dtype)
        hits = (perturbed.steps == solver_state)[:, None] & (perturbed.levels[:, None] == numbers[None, :])
        hit = jnp.any(hits, axis=0)
        if perturbed.replace:
            weights = jnp.where(hit, fixed @ hits.astype(p.dtype), weights)
        coefficients = level_coefficients(weights)
        moves = LevelControl(dt, coefficients, coefficients != 0)
        if place is not None:
            moves = tuple(moves if i == place else c for i, c in enumerate(control))
        increment = terms.vf_prod(t0, y0, args, moves)
        # This term is zero and exists for its derivative with respect to the weights. It needs the increment of a
        # perturbed level whether the level fires or not, but no Jacobian of a level. It is therefore evaluated
        # separately from the step, at a state without a tangent.
        probe = level_coefficients((perturbed.weights - fixed) @ hits.astype(p.dtype))
        needed = hit | jnp.append(hit[1:], False)
        still = jax.lax.stop_gradient(y0)
        source = term.vf_prod(t, still, args, LevelControl(dt, probe, needed))
        y1 = jtu.tree_map(lambda y, a, b: y + a + b, y0, increment, source)
        return y1, None, dict(y0=y0, y1=y1), solver_state + 1, diffrax.RESULTS.successful


def gradient_of_error(
    problem: Problem, logits: Float[Array, "levels knots"], y0s: Y, key: PRNGKeyArray
) -> tuple[Float[Array, " batch"], Float[Array, "batch levels knots"]]:
    """For each trajectory of a batch, the squared distance of its end state to the reference (a mean over components),
    and an estimate of the gradient of the expected squared distance with respect to the logits."""
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
        steps.append(_random_steps(mass, batch, problem.perturbations, jr.fold_in(draw_key, k)))
        masses.append(mass[-1])
    steps, masses = jnp.concatenate(steps, axis=1), jnp.repeat(jnp.stack(masses), problem.perturbations)
    levels = jnp.asarray(np.repeat(rows, problem.perturbations), jnp.int32)

    def one(y0: Y, steps: Array, noise_key: Array) -> tuple[Array, Array]:
        terms = problem.make_terms(noise_key)
        reference = problem.end(diffrax.Euler(), terms, y0)

        def from_reference(*perturbations: Any) -> Y:
            # The batch shares its coins, as in MLEM, so levels that do not fire are not evaluated.
            end = problem.end(
                _PerturbedMLEM(probabilities, coin_key, _Perturbations(*perturbations)), terms, y0
            )
            return jtu.tree_map(jnp.subtract, end, reference)

        def parabola(tangent: Array) -> tuple[Y, Y]:
            zeros = jnp.zeros_like(tangent)
            return jax.jvp(lambda w: from_reference(steps, levels, w, False), (zeros,), (tangent,))

        def coupled(step: Array, level: Array, p: Array) -> tuple[Array, Array]:
            def outcome(weight: Array) -> tuple[Array, Array]:
                def square(w: Array) -> Array:
                    distance = from_reference(step[None], level[None], w[None], True)
                    return _mean_product(distance, distance).astype(p.dtype)

                return jax.jvp(square, (weight,), (jnp.ones_like(weight),))

            (miss, fire), (_, slope) = jax.vmap(outcome)(jnp.stack([jnp.zeros_like(p), 1 / p]))
            return (1 - p) * miss + p * fire, p * slope - p**2 * (fire - miss)

        if problem.unbiased:
            errors, squares = jax.vmap(coupled)(steps, levels, p[steps, levels])
            error = jnp.mean(errors)
        else:
            distances, tangents = jax.vmap(parabola)(jnp.eye(len(levels), dtype=p.dtype))
            error = _mean_product(*(jtu.tree_map(lambda leaf: leaf[0], distances),) * 2).astype(p.dtype)
            squares = jax.vmap(_mean_product)(tangents, tangents).astype(p.dtype)
        shares = -(masses * squares / problem.perturbations)[:, None] * hats[steps]
        return error, jnp.zeros_like(logits).at[levels].add(shares)

    return jax.vmap(one)(y0s, steps, jr.split(noise_key, batch))


def _random_steps(
    mass: Float[Array, " steps"], batch: int, number: int, key: PRNGKeyArray
) -> Int[Array, "batch number"]:
    """Random steps whose distribution has these cumulative masses. Each single step has this distribution; all of them
    together are stratified samples of it."""
    shuffle_key, shift_key = jr.split(key)
    slots = jr.permutation(shuffle_key, batch * number).astype(mass.dtype)
    places = (slots + jr.uniform(shift_key, (), mass.dtype)) / (batch * number)
    steps = jnp.searchsorted(mass, places * mass[-1], side="right")
    return jnp.minimum(steps, len(mass) - 1).reshape(batch, number).astype(jnp.int32)


def _mean_product(a: Y, b: Y) -> Float[Array, ""]:
    """The mean over the state's components of their products."""
    products = [jnp.sum(u * v) for u, v in zip(jtu.tree_leaves(a), jtu.tree_leaves(b), strict=True)]
    size = sum(leaf.size for leaf in jtu.tree_leaves(a))
    return jnp.sum(jnp.stack(products)) / size
