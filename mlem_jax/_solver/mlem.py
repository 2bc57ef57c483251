"""ML-EM as a diffrax solver."""

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

    with weights of mean one that are mostly zero. A drop-in for [`diffrax.Euler`][]: the same steps,
    time-stepping, saving, events, noise and adjoints, Itô solution, first order. Fixed steps only
    (`dt0` or `StepTo`): an adaptive controller would accept or reject steps by their coins.

    **Arguments:**

    - `probabilities`: how often each increment `D_k = f^k - f^{k-1}` is looked at, cheapest level first:
        an array `(K,)` with entries in `(0, 1]`, a callable `t -> (K,)`, or one of
        [`mlem_jax.PowerLaw`][], [`mlem_jax.TabulatedProbabilities`][], [`mlem_jax.Rates`][]. Lists and NumPy arrays
        are constants of the solver, JAX arrays are data (see [`mlem_jax.AbstractProbabilities`][]).
    - `coins`: when it is looked at, given how often. `SystematicCoins(offset=0.5)`, the default, spaces
        the evaluations evenly and has no randomness. [`mlem_jax.IndependentCoins`][] are the paper's.
    - `key`: random key for the coins (not for the noise); keyword-only. Coins without randomness need none.
    - `shared`: whether all trajectories of a `vmap` share their coins. Then a level runs only where its
        coin comes up, and each trajectory keeps its law, but the trajectories of a batch are correlated.
        `False` draws coins per trajectory (batch the key then); a level then runs whenever any of the
        `B` trajectories needs it, with probability up to `1 - (1 - p)**B`.
    - `record`: keep the firings of the last `record` steps in the solver's state.
    - `check_finite`: stop a trajectory with an unsuccessful `result` as soon as its state is not finite; with
        `diffeqsolve(..., throw=False)` nothing is raised and the others of a batch go on. `False` leaves this out and
        every other check at run time (that a callable's values are probabilities, say); infinity and NaN then
        pass, as with [`diffrax.Euler`][].

    With default coins and constant probabilities a solver can be hashed, as `diffrax.Euler()` can. Gradients with
    respect to a solver's own numbers are zero.

    [`diffrax.steady_state_event`][] evaluates the finest level in every step, outside the solver's counts. A cheap way
    to stop is an event of your own, with a cheap level in it:
    `diffrax.Event(lambda t, y, args, **kwargs: optimistix.rms_norm(cheap(t, y, args)) < 1e-3)`.

    Raises `ValueError` for bad probabilities, for terms other than one `MultilevelTerm` (with or without
    control terms beside it), for a number of probabilities that is not the number of levels, for
    levels that disagree in structure or dtype, for a missing key, for another solver's state, and for coins that a
    `vmap` would batch.
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
        """1, in the length of the steps."""
        return 1

    def strong_order(self, terms: PyTree) -> float:
        """1/2 in the length of the steps (1 for additive noise)."""
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
            # The finest level in every step: the increments of all others cancel, and the control of
            # time asks the term for just that.
            active = jnp.arange(len(term.levels)) == len(term.levels) - 1
            fired = jnp.ones(len(term.levels), bool)
            number, coins = solver_state.toss, solver_state.coins
        else:
            _, _, coefficients, active, fired, number, coins = self._toss(t, jnp.abs(dt), solver_state)
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
