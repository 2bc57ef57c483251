"""ML-EM as a diffrax solver."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ._batching import across_batch, furthest, refuse_batch, refuse_gradient
from ._coins import AbstractCoins, SystematicCoins
from ._probabilities import AbstractProbabilities, as_probabilities, EveryStep
from ._term import find_multilevel_term, LevelControl
from ._types import Args, Numbers, RealScalarLike, Y

_BATCHED = (
    "The coins of this MLEM solver differ between the trajectories of a vmap (its key or probabilities "
    "are batched), so every level would be evaluated for every trajectory and nothing would be saved. "
    "Keep the solver out of the vmap, for example jax.vmap(solve, in_axes=(0, None))(y0, solver), or ask "
    "for MLEM(..., shared=False), coins per trajectory, whose cost is that of the whole batch."
)
_TIMES_DIFFER = (
    "The probabilities differ between the trajectories of a vmap, because these step through different "
    "times. Give all trajectories the same t0, t1 and dt0, or probabilities that do not depend on time, "
    "or ask for coins per trajectory, MLEM(..., shared=False)."
)
_GRADIENT = (
    "MLEM cannot be differentiated with respect to its probabilities: the coins are discrete, and what "
    "autodiff returns here would not be the derivative of the expected result."
)
_NOT_PROBABILITIES = (
    "The probabilities given to MLEM are not all in (0, 1]. Use mlem_jax.Rates(...) for rates per unit "
    "time, and leave out a level that should never be looked at."
)
_NOT_FINITE = (
    "The drift given to MLEM returned a value that is not finite. Solve with diffrax.Euler() on the same "
    "terms to see whether the finest level alone does so too; if not, a cheaper level does."
)


class Firings(eqx.Module):
    """A record of the last steps of a solve.

    - `times`: start of each recorded step, `(N,)`; unused entries are NaN.
    - `active`: which levels were evaluated in it, `(N, K)`.
    - `fired`: which levels' coins came up, `(N, K)`.
    """

    times: Float[Array, " steps"]
    active: Bool[Array, "steps levels"]
    fired: Bool[Array, "steps levels"]


class MLEMState(eqx.Module):
    """The state that MLEM carries from step to step; pass it back to continue a solve.

    - `step`: number of steps taken, over all solves that were continued.
    - `toss`: number of the next toss of the coins. The same as `step`, except in a `vmap` with shared coins
        that was continued from trajectories of different lengths: it goes on from the longest one.
    - `coins`: the state of the coin policy.
    - `evaluations`: how often each level was evaluated, `(K,)`.
    - `costs`: the term's costs, `(K,)`, or `None`.
    - `firings`: the record asked for by `MLEM(record=...)`, or `None`.
    """

    step: Int[Array, ""]
    toss: Int[Array, ""]
    coins: PyTree[Array]
    evaluations: Int[Array, " levels"]
    costs: Float[Array, " levels"] | None
    firings: Firings | None


class MLEM(diffrax.AbstractItoSolver):
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

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.LocalLinearInterpolation]] = (
        diffrax.LocalLinearInterpolation
    )

    probabilities: AbstractProbabilities
    coins: AbstractCoins
    key: PRNGKeyArray
    shared: bool = eqx.field(static=True)
    record: int = eqx.field(static=True)
    check_finite: bool = eqx.field(static=True)

    def __init__(
        self,
        probabilities: Numbers | AbstractProbabilities | Callable[[RealScalarLike], Numbers],
        *,
        coins: AbstractCoins = SystematicCoins(offset=0.5),  # noqa: B008 (immutable)
        key: PRNGKeyArray,
        shared: bool = True,
        record: int = 0,
        check_finite: bool = True,
    ):
        self.probabilities = as_probabilities(probabilities)
        if not isinstance(coins, AbstractCoins):
            raise ValueError(
                f"MLEM needs coins such as mlem_jax.IndependentCoins() and was given {coins!r}. Write the "
                "parentheses: an object is expected, not a class."
            )
        if isinstance(key, int):
            raise ValueError(f"MLEM was given key={key}; write key=jax.random.key({key}).")
        if isinstance(record, bool) or not isinstance(record, int) or record < 0:
            raise ValueError(
                f"MLEM was given record={record!r}; the number of steps to keep is expected, for example "
                "record=4096, or 0 for none."
            )
        self.coins = coins
        # Mixed, so that coins and noise are independent for a user who gives both the same key.
        self.key = jr.fold_in(key, 0x636F696E)
        self.shared = shared
        self.record = record
        self.check_finite = check_finite

    def order(self, terms: PyTree) -> int:
        """1, in the length of the steps."""
        return 1

    def strong_order(self, terms: PyTree) -> float:
        """1/2 in the length of the steps (1 for additive noise)."""
        return 0.5

    def init(self, terms: PyTree, t0: RealScalarLike, t1: RealScalarLike, y0: Y, args: Args) -> MLEMState:
        """Checks the terms and returns the state before the first step."""
        _, term = find_multilevel_term(terms)
        term.check_levels(t0, y0, args)
        num_levels = len(term.levels)
        shape = jax.eval_shape(self.probabilities, t0, jnp.asarray(t1) - jnp.asarray(t0)).shape
        if shape != (num_levels,):
            raise ValueError(
                f"MLEM was given probabilities of shape {shape} for {num_levels} levels; one probability "
                f"per level is expected, shape ({num_levels},), cheapest level first."
            )
        firings = None
        if self.record:
            firings = Firings(
                jnp.full(self.record, jnp.nan, jnp.result_type(t0)),
                jnp.zeros((self.record, num_levels), bool),
                jnp.zeros((self.record, num_levels), bool),
            )
        return MLEMState(
            step=jnp.asarray(0, jnp.int32),
            toss=jnp.asarray(0, jnp.int32),
            coins=self.coins.init(num_levels),
            evaluations=jnp.zeros(num_levels, jnp.int32),
            costs=None if term.costs is None else jnp.asarray(term.costs),
            firings=firings,
        )

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
        if isinstance(self.probabilities, EveryStep):
            # The finest level in every step: the increments of all others cancel, and the control of
            # time asks the term for just that.
            active = jnp.arange(len(term.levels)) == len(term.levels) - 1
            fired = jnp.ones(len(term.levels), bool)
            toss, coins = solver_state.toss, solver_state.coins
        else:
            coefficients, active, fired, toss, coins = self._weights(t, jnp.abs(dt), solver_state)
            level_control = LevelControl(dt, coefficients, active)
            if place is None:
                control = level_control
            else:
                control = tuple(level_control if i == place else c for i, c in enumerate(control))
        increment = terms.vf_prod(t0, y0, args, control)
        y1 = jtu.tree_map(jnp.add, y0, increment)
        if self.check_finite:
            y1 = _check_finite(y1, y0)

        evaluations = solver_state.evaluations + active.astype(jnp.int32)
        firings = solver_state.firings
        if firings is not None:
            row = solver_state.step % self.record
            firings = Firings(
                firings.times.at[row].set(t.astype(firings.times.dtype)),
                firings.active.at[row].set(active),
                firings.fired.at[row].set(fired),
            )
        state = MLEMState(solver_state.step + 1, toss + 1, coins, evaluations, solver_state.costs, firings)
        return y1, None, dict(y0=y0, y1=y1), state, diffrax.RESULTS.successful

    def _weights(
        self, t: Array, h: Array, state: MLEMState
    ) -> tuple[Float[Array, " k"], Bool[Array, " k"], Bool[Array, " k"], Int[Array, ""], PyTree[Array]]:
        """The coefficients `c_k`, which are not zero, which levels fired, the number of the toss, and the
        coins' next state."""
        t, h = jax.lax.stop_gradient((t, h))
        probabilities = self.probabilities
        if self.shared:
            probabilities = jtu.tree_map(_refuse_batched_array, probabilities)
        p = refuse_gradient(probabilities(t, h), _GRADIENT)
        # A trajectory of a batch that has reached its own t1 steps on the spot while the others go on.
        waiting = h <= 0
        p = jnp.where(waiting, jnp.ones_like(p), p)
        p = eqx.error_if(p, ~jnp.all((p > 0) & (p <= 1)), _NOT_PROBABILITIES)
        toss, coins = state.toss, state.coins
        if self.shared:
            current = furthest(jnp.where(waiting, -1, toss))
            (toss,), _ = across_batch(toss[None], current)
            p, same = across_batch(p, current)
            p = eqx.error_if(p, ~same, _TIMES_DIFFER)
            coins = jtu.tree_map(lambda x: across_batch(x, current)[0], coins)
        count, coins = self.coins.toss(p, coins, toss, self.key)
        weights = count.astype(p.dtype) / p
        coefficients = weights - jnp.append(weights[1:], jnp.zeros(1, p.dtype))
        active = coefficients != 0
        if self.shared:
            active = refuse_batch(active, _BATCHED)
        return coefficients, active, count > 0, toss, coins

    def func(self, terms: PyTree, t0: RealScalarLike, y0: Y, args: Args) -> Any:
        """The finest level's drift."""
        return terms.vf(t0, y0, args)


def _refuse_batched_array(x: Any) -> Any:
    return refuse_batch(refuse_gradient(x, _GRADIENT), _BATCHED) if eqx.is_array(x) else x


def _check_finite(y1: Y, y0: Y) -> Y:
    """An error where a finite state turns into one that is not."""

    def bad(y: Y) -> Bool[Array, ""]:
        # NaN or infinite if any entry is: one multiplication and addition each, faster than a test of each.
        sums = [jnp.sum(jnp.zeros_like(leaf) * leaf) for leaf in jtu.tree_leaves(y)]
        return ~jnp.all(jnp.stack([jnp.isfinite(s) for s in sums]))

    # The old state is looked at in the rare case only.
    turned = jax.lax.cond(bad(y1), lambda: ~bad(y0), lambda: jnp.asarray(False))
    return eqx.error_if(y1, turned, _NOT_FINITE)
