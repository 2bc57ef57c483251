"""The multilevel Euler-Maruyama method as a diffrax solver."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PRNGKeyArray, PyTree

from .._coins import AbstractCoins, SystematicCoins
from .._custom_types import Args, Numbers, RealScalarLike, Y
from .._probabilities import AbstractProbabilities
from .._term import find_multilevel_term, LevelControl
from .base import AbstractMultilevelSolver
from .results import not_finite
from .state import MLEMState


class MLEM(AbstractMultilevelSolver):
    r"""The multilevel Euler-Maruyama method (Jacot 2026, arXiv 2603.24594).

    $$x_{n+1} = x_n + h_n \sum_k w_{k,n} (f^k - f^{k-1})(t_n, x_n) + g(t_n, x_n) \Delta W_n$$

    The weights have mean 1 and are mostly zero. The solver is a drop-in replacement for [`diffrax.Euler`][]: it works
    with the same saving, events, noise and adjoints, converges to the Itô solution and is of first order. It needs
    fixed steps (`dt0` or `StepTo`), because an adaptive controller would accept or reject steps by their coins.

    **Arguments:**

    - `probabilities`: the probability with which each level fires in a step, that is, with which its increment
        `D_k = f^k - f^{k-1}` is evaluated; cheapest level first. Either an array `(K,)` with entries in `(0, 1]`, a
        callable `t -> (K,)`, or one of [`mlem_jax.PowerLaw`][], [`mlem_jax.TabulatedProbabilities`][],
        [`mlem_jax.Rates`][]. Lists and NumPy arrays are constants of the solver, JAX arrays are data (see
        [`mlem_jax.AbstractProbabilities`][]).
    - `coins`: the policy that decides in which steps a level fires. The default, `SystematicCoins(offset=0.5)`, spaces
        the firings evenly and has no randomness. [`mlem_jax.IndependentCoins`][] are the paper's.
    - `key`: random key for the coins (not for the noise); keyword-only. Deterministic coins need none.
    - `shared`: whether all trajectories of a `vmap` share their coins. Levels are then evaluated only in steps in which
        they are needed. Each trajectory keeps its distribution, but the trajectories of a batch are correlated. With
        `False` each trajectory has its own coins (batch the key); a level is then evaluated for the whole batch if any
        of its `B` trajectories needs it, with probability up to `1 - (1 - p)**B`.
    - `record`: the number of last steps whose firings are kept in the solver's state.
    - `check_finite`: whether a trajectory stops with an unsuccessful `result` as soon as its state is not finite. With
        `diffeqsolve(..., throw=False)` nothing is raised and the other trajectories of a batch continue. `False` omits
        this and all other checks at run time (for example that a callable returns probabilities); infinity and NaN
        then propagate, as with [`diffrax.Euler`][].

    With default coins and constant probabilities a solver can be hashed, like `diffrax.Euler()`. Gradients with respect
    to the numbers in a solver are zero.

    [`diffrax.steady_state_event`][] evaluates the finest level in every step, and the solver does not count these
    evaluations. An event with a cheap level costs less:
    `diffrax.Event(lambda t, y, args, **kwargs: optimistix.rms_norm(cheap(t, y, args)) < 1e-3)`.

    Raises `ValueError` for invalid probabilities or a number of them that is not the number of levels, for terms other
    than one `MultilevelTerm` (alone or beside control terms), for levels that disagree in structure or dtype, for a
    missing key, for the state of another solver, and for coins that a `vmap` would batch.
    """

    state_cls: ClassVar[type[MLEMState]] = MLEMState

    probabilities: AbstractProbabilities
    coins: AbstractCoins
    _key: PRNGKeyArray | None
    shared: bool = eqx.field(static=True)
    record: int = eqx.field(static=True)
    check_finite: bool = eqx.field(static=True)

    def __init__(
        self,
        probabilities: Numbers | AbstractProbabilities | Callable[[RealScalarLike], Numbers],
        *,
        coins: AbstractCoins = SystematicCoins(offset=0.5),  # noqa: B008 (immutable)
        key: PRNGKeyArray | None = None,
        shared: bool = True,
        record: int = 0,
        check_finite: bool = True,
    ):
        settings = self._checked_settings(probabilities, coins, key, record)
        self.probabilities, self.coins, self._key, self.record = settings
        self.shared = shared
        self.check_finite = check_finite

    def order(self, terms: PyTree) -> int:
        """1, in the step size."""
        return 1

    def strong_order(self, terms: PyTree) -> float:
        """1/2 in the step size (1 for additive noise)."""
        return 0.5

    def init(self, terms: PyTree, t0: RealScalarLike, t1: RealScalarLike, y0: Y, args: Args) -> MLEMState:
        """Checks the terms and returns the state before the first step."""
        return MLEMState(**self._initial(terms, t0, t1, y0, args))

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
        place, term = find_multilevel_term(terms, "MLEM")
        self._check_state(solver_state, term)
        control = terms.contr(t0, t1)
        dt = control if place is None else control[place]
        # diffeqsolve runs backward solves in the time -t; probabilities are functions of t itself.
        t = jnp.where(dt >= 0, t0, -t0)
        if self.probabilities.every_step:
            # All levels fire in every step, so the coarser levels cancel. With the increment of time as its control,
            # the term is the finest level.
            active = jnp.arange(len(term.levels)) == len(term.levels) - 1
            fired = jnp.ones(len(term.levels), bool)
            number, coins = solver_state.draws, solver_state.coins
        else:
            _, _, coefficients, active, fired, number, coins = self._draw_coins(t, jnp.abs(dt), solver_state)
            level_control = LevelControl(dt, coefficients, active)
            if place is None:
                control = level_control
            else:
                control = tuple(level_control if i == place else c for i, c in enumerate(control))
        increment = terms.vf_prod(t0, y0, args, control)
        y1 = jtu.tree_map(jnp.add, y0, increment)
        result = not_finite("MLEM", y0, y1) if self.check_finite else diffrax.RESULTS.successful
        state = MLEMState(**self._next(solver_state, t, active.astype(jnp.int32), fired, number, coins))
        return y1, None, dict(y0=y0, y1=y1), state, result
