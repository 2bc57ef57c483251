"""A multilevel solver whose steps are of second order, as a diffrax solver."""

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ._batching import refuse_batch
from ._multilevel_solver import AbstractMultilevelSolver, BATCHED, LastStep, MLEMState, refuse_not_finite
from ._probabilities import EveryStep
from ._term import find_multilevel_term, LevelControl
from ._types import Args, RealScalarLike, Y

_NO_BASE = (
    "MLAB2 needs the cheapest level in every step, a first probability of 1, and was given a smaller one. "
    "Set it to 1, or use mlem_jax.MLEM, which needs no level in every step."
)


class MLAB2(AbstractMultilevelSolver):
    r"""ML-EM with the two-step Adams-Bashforth method in place of Euler's.

    $$x_{n+1} = x_n + h_n \Bigl[b_n + \tfrac{r_n}{2} (b_n - b_{n-1})
        + \sum_{k > j} w_{k,n} (f^k - f^{k-1})(t_n + \tfrac{h_n}{2}, \hat x_n)\Bigr] + g(t_n, x_n) \Delta W_n$$
    $$b_n = f^j(t_n, x_n),\quad r_n = h_n / h_{n-1},\quad
        \hat x_n = x_n + \tfrac{h_n}{2} \bigl[b_n + \tfrac{r_n}{4} (b_n - b_{n-1})\bigr]$$

    where `j` is the finest level that is looked at in every step (probability 1), usually the cheapest one. Its
    flow is followed to second order at one evaluation a step, so that far fewer steps are enough than with
    [`mlem_jax.MLEM`][]: the corrections of the other levels are what evaluations are spent on. They are
    evaluated, and act, in the middle of a step; level `j` runs once more in a step in which level `j + 1` fires. With
    probability 1 for all levels it is the Adams-Bashforth method on the finest level. The formula for unequal
    steps is that of Hairer, Norsett & Wanner (Solving Ordinary Differential Equations I, section III.5).

    A drop-in for [`diffrax.Euler`][] like `MLEM`, with the same terms, arguments and state. The first step, one after
    a jump, and one where `j` changes have `r_n = 0`. Of second order in the steps for ODEs; for additive noise of
    strong order 1 with the least error that a path's increments over the steps allow (a step's noise reaches the
    drift half a step late on average, which the difference `b_n - b_{n-1}` makes up for).
    For what corrections and coins contribute see [`mlem_jax.SystematicCoins`][] and `MLEM`.

    Its stability is half of Euler's: for a drift `-a x` steps shorter than `1 / a`.

    **Arguments:** as for [`mlem_jax.MLEM`][]; the first probability must be 1.

    Raises as `MLEM` does, and at run time for a first probability below 1.
    """

    __init__ = AbstractMultilevelSolver.__init__

    def order(self, terms: PyTree) -> int:
        """2, in the length of the steps."""
        return 2

    def strong_order(self, terms: PyTree) -> float:
        """1/2 in the length of the steps (1 for additive noise)."""
        return 0.5

    def init(self, terms: PyTree, t0: RealScalarLike, t1: RealScalarLike, y0: Y, args: Args) -> MLEMState:
        """Checks the terms and returns the state before the first step."""
        state = super().init(terms, t0, t1, y0, args)
        length = jnp.zeros((), jnp.result_type(t0, t1, float))
        last = LastStep(jtu.tree_map(jnp.zeros_like, y0), length, jnp.asarray(-1, jnp.int32))
        return eqx.tree_at(lambda s: s.last, state, last, is_leaf=lambda x: x is None)

    def step(
        self,
        terms: PyTree,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
        solver_state: MLEMState,
        made_jump: Any,
    ) -> tuple[Y, None, dict[str, Y], MLEMState, diffrax.RESULTS]:
        """One step; as [`diffrax.AbstractSolver.step`][]."""
        place, term = find_multilevel_term(terms)
        members = (terms,) if place is None else terms.terms
        controls = (terms.contr(t0, t1),) if place is None else terms.contr(t0, t1)
        ours = 0 if place is None else place
        drift_term, dt = members[ours], controls[ours]
        # diffeqsolve runs backward solves in the time -t; probabilities are functions of t itself.
        t = jnp.where(dt >= 0, t0, -t0)
        numbers = jnp.arange(len(term.levels), dtype=jnp.int32)
        increments = [
            member.vf_prod(t0, y0, args, c)
            for i, (member, c) in enumerate(zip(members, controls, strict=True))
            if i != ours
        ]
        if isinstance(self.probabilities, EveryStep):
            level = jnp.asarray(len(term.levels) - 1, jnp.int32)
            counts, fired = (numbers == level).astype(jnp.int32), jnp.ones(len(term.levels), bool)
            toss, coins = solver_state.toss, solver_state.coins
            drift, corrections = drift_term.vf(t0, y0, args), None
        else:
            p, coefficients, _, fired, toss, coins = self._toss(t, jnp.abs(dt), solver_state)
            level = jnp.sum(jnp.cumprod(p >= 1)).astype(jnp.int32) - 1
            level = eqx.error_if(level, level < 0, _NO_BASE)
            base = numbers == level
            one = LevelControl(jnp.ones((), p.dtype), base.astype(p.dtype), base)
            drift = drift_term.vf_prod(t0, y0, args, one)
            # The base of the increment above it is evaluated in the middle of the step too.
            rest = jnp.where(base, coefficients - 1, jnp.where(numbers > level, coefficients, 0))
            runs = rest != 0
            corrections = LevelControl(dt, rest, refuse_batch(runs, BATCHED) if self.shared else runs)
            counts = base.astype(jnp.int32) + runs.astype(jnp.int32)
        last = solver_state.last
        assert last is not None
        length = jnp.abs(dt).astype(last.length.dtype)
        ratio = _ratio(length, last, level, made_jump)
        if corrections is not None:
            middle = _advance(0.5, dt, ratio, y0, drift, last.drift)
            t_middle = t0 + 0.5 * (t1 - t0)
            increments.append(drift_term.vf_prod(t_middle, middle, args, corrections))
        y1 = _advance(1.0, dt, ratio, y0, drift, last.drift)
        y1 = jtu.tree_map(lambda y, *more: sum(more, start=y), y1, *increments)
        if self.check_finite:
            y1 = refuse_not_finite(y1, y0)
        # A step on the spot, of a trajectory that waits for the others of its batch, is no step.
        now = LastStep(drift, length, level)
        now = jtu.tree_map(lambda new, old: jnp.where(length > 0, new, old), now, last)
        state = self._next(solver_state, t, counts, fired, toss, coins, now)
        return y1, None, dict(y0=y0, y1=y1), state, diffrax.RESULTS.successful


def _ratio(length: Array, last: LastStep, level: Array, made_jump: Any) -> Array:
    """This step's length over the last one's; zero where the last drift is of no use."""
    useful = (last.length > 0) & (last.level == level) & ~jnp.asarray(made_jump)
    return jnp.where(useful, length / jnp.where(useful, last.length, 1), 0)


def _advance(part: float, dt: RealScalarLike, ratio: Array, y: Y, new: Y, old: Y) -> Y:
    """The state after a part of the step, by the drift's straight line through this step and the last one."""

    def leaf(y: Array, new: Array, old: Array) -> Array:
        h, slope = (jnp.asarray(x).astype(y.dtype) for x in (dt, ratio))
        return y + part * h * (new + 0.5 * part * slope * (new - old))

    return jtu.tree_map(leaf, y, new, old)
