"""ML-EM as a diffrax solver."""

from typing import Any

import diffrax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._custom_types import Args, RealScalarLike, Y
from .._term import find_multilevel_term, LevelControl
from .base import AbstractMultilevelSolver, MLEMState, refuse_not_finite


class MLEM(AbstractMultilevelSolver):
    r"""The multilevel Euler-Maruyama method (Jacot 2026, arXiv 2603.24594).

    $$x_{n+1} = x_n + h_n \sum_k w_{k,n} (f^k - f^{k-1})(t_n, x_n) + g(t_n, x_n) \Delta W_n$$

    with weights of mean one that are mostly zero. A drop-in for [`diffrax.Euler`][]: the same steps,
    time-stepping, saving, events, noise and adjoints, Itô solution, first order. Fixed steps only
    (`dt0` or `StepTo`): an adaptive controller would accept or reject steps by their coins.

    **Arguments:**

    - `probabilities`: how often each increment `D_k = f^k - f^{k-1}` is looked at, cheapest level first:
        an array `(K,)` with entries in `(0, 1]`, a callable `t -> (K,)`, or one of
        [`mlem_jax.PowerLaw`][], [`mlem_jax.TabulatedProbabilities`][], [`mlem_jax.Rates`][].
    - `coins`: when it is looked at, given how often. `SystematicCoins(offset=0.5)`, the default, spaces
        the evaluations evenly and has no randomness. [`mlem_jax.IndependentCoins`][] are the paper's.
    - `key`: random key for the coins (not for the noise); keyword-only.
    - `shared`: whether all trajectories of a `vmap` share their coins. Then a level runs only where its
        coin comes up, and each trajectory keeps its law, but the trajectories of a batch are correlated.
        `False` draws coins per trajectory (batch the key then); a level then runs whenever any of the
        `B` trajectories needs it, with probability up to `1 - (1 - p)**B`.
    - `record`: keep the firings of the last `record` steps in the solver's state.
    - `check_finite`: raise an error as soon as a step is not finite.

    Raises `ValueError` for bad probabilities, for terms other than one `MultilevelTerm` (with or without
    control terms beside it), for a number of probabilities that is not the number of levels, for
    levels that disagree in structure or dtype, and for coins that a `vmap` would batch.
    """

    __init__ = AbstractMultilevelSolver.__init__

    def order(self, terms: PyTree) -> int:
        """1, in the length of the steps."""
        return 1

    def strong_order(self, terms: PyTree) -> float:
        """1/2 in the length of the steps (1 for additive noise)."""
        return 0.5

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
        del made_jump
        place, term = find_multilevel_term(terms)
        control = terms.contr(t0, t1)
        dt = control if place is None else control[place]
        # diffeqsolve runs backward solves in the time -t; probabilities are functions of t itself.
        t = jnp.where(dt >= 0, t0, -t0)
        if self.probabilities.every_step:
            # The finest level in every step: the increments of all others cancel, and the control of
            # time asks the term for just that.
            active = jnp.arange(len(term.levels)) == len(term.levels) - 1
            fired = jnp.ones(len(term.levels), bool)
            toss, coins = solver_state.toss, solver_state.coins
        else:
            _, _, coefficients, active, fired, toss, coins = self._toss(t, jnp.abs(dt), solver_state)
            level_control = LevelControl(dt, coefficients, active)
            if place is None:
                control = level_control
            else:
                control = tuple(level_control if i == place else c for i, c in enumerate(control))
        increment = terms.vf_prod(t0, y0, args, control)
        y1 = jtu.tree_map(jnp.add, y0, increment)
        if self.check_finite:
            y1 = refuse_not_finite(y1, y0)
        state = self._next(solver_state, t, active.astype(jnp.int32), fired, toss, coins)
        return y1, None, dict(y0=y0, y1=y1), state, diffrax.RESULTS.successful
