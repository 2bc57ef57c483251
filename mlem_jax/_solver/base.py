"""What the multilevel solvers share: their settings, their state, and the toss of a step's coins.

The solvers themselves are in `mlem.py` (first order) and `mlab2.py` (second order).
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .._batching import across_batch, furthest, refuse_batch, refuse_gradient
from .._coins import AbstractCoins, SystematicCoins
from .._custom_types import Args, Numbers, RealScalarLike, Y
from .._probabilities.probabilities import AbstractProbabilities, as_probabilities
from .._term import find_multilevel_term

BATCHED = (
    "The coins of this multilevel solver differ between the trajectories of a vmap (its key or probabilities "
    "are batched), so every level would be evaluated for every trajectory and nothing would be saved. "
    "Keep the solver out of the vmap, for example jax.vmap(solve, in_axes=(0, None))(y0, solver), or give "
    "the solver shared=False, coins per trajectory, whose cost is that of the whole batch."
)
_TIMES_DIFFER = (
    "The probabilities differ between the trajectories of a vmap, because these step through different "
    "times. Give all trajectories the same t0, t1 and dt0, or probabilities that do not depend on time, "
    "or ask for coins per trajectory, shared=False."
)
_GRADIENT = (
    "A multilevel solver cannot be differentiated with respect to its probabilities: the coins are discrete, and what "
    "autodiff returns here would not be the derivative of the expected result."
)
_NOT_PROBABILITIES = (
    "The probabilities given to the solver are not all in (0, 1]. Use mlem_jax.Rates(...) for rates per unit "
    "time, and leave out a level that should never be looked at."
)
_NOT_FINITE = (
    "The drift given to the solver returned a value that is not finite. Solve with diffrax.Euler() on the same "
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
    """The state that [`mlem_jax.MLEM`][] and [`mlem_jax.MLAB2`][] carry from step to step; pass it back to continue
    a solve.

    - `step`: number of steps taken, over all solves that were continued.
    - `toss`: number of the next toss of the coins. The same as `step`, except in a `vmap` with shared coins
        that was continued from trajectories of different lengths: it goes on from the longest one.
    - `coins`: the state of the coin policy.
    - `evaluations`: how often each level was evaluated, `(K,)`.
    - `costs`: the term's costs, `(K,)`, or `None`.
    - `firings`: the record asked for by `record=...`, or `None`.
    - `last`: what `MLAB2` remembers of the last step; `None` for `MLEM`.
    """

    step: Int[Array, ""]
    toss: Int[Array, ""]
    coins: PyTree[Array]
    evaluations: Int[Array, " levels"]
    costs: Float[Array, " levels"] | None
    firings: Firings | None
    last: "LastStep | None" = None


class LastStep(eqx.Module):
    """What `MLAB2` remembers.

    - `drift`: of the last step, like the state.
    - `length`: of the last step in the solver's time variable; zero before the first one.
    - `increments`: `f^k - f^{k-1}` when level `k` was last looked at, like the state with a leading axis of `K - 1`;
        zeros before that. `None` where all probabilities are 1.
    - `behind`: looks that each of these levels was due by its probabilities, less those that it had, `(K - 1,)`;
        or `None`.
    """

    drift: PyTree[Array]
    length: Float[Array, "*batch"]
    increments: PyTree[Array] | None = None
    behind: Float[Array, "*batch levels"] | None = None


class Toss(NamedTuple):
    """What came up in one step: probabilities, weights, their differences `c_k = w_k - w_{k+1}`, which of these are
    not zero, which levels fired, the number of the toss, and the coins' next state."""

    p: Float[Array, " levels"]
    weights: Float[Array, " levels"]
    coefficients: Float[Array, " levels"]
    active: Bool[Array, " levels"]
    fired: Bool[Array, " levels"]
    toss: Int[Array, ""]
    coins: PyTree[Array]


class AbstractMultilevelSolver(diffrax.AbstractItoSolver):
    """A solver that looks at the levels of one [`mlem_jax.MultilevelTerm`][] as coins say."""

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
                f"{type(self).__name__} needs coins such as mlem_jax.IndependentCoins() and was given {coins!r}. "
                "Write the parentheses: an object is expected, not a class."
            )
        if isinstance(key, int):
            raise ValueError(f"{type(self).__name__} was given key={key}; write key=jax.random.key({key}).")
        if isinstance(record, bool) or not isinstance(record, int) or record < 0:
            raise ValueError(
                f"{type(self).__name__} was given record={record!r}; the number of steps to keep is expected, for "
                "example record=4096, or 0 for none."
            )
        self.coins = coins
        # Mixed, so that coins and noise are independent for a user who gives both the same key.
        self.key = jr.fold_in(key, 0x636F696E)
        self.shared = shared
        self.record = record
        self.check_finite = check_finite

    def init(self, terms: PyTree, t0: RealScalarLike, t1: RealScalarLike, y0: Y, args: Args) -> MLEMState:
        """Checks the terms and returns the state before the first step."""
        _, term = find_multilevel_term(terms)
        term.check_levels(t0, y0, args)
        num_levels = len(term.levels)
        shape = jax.eval_shape(self.probabilities, t0, jnp.asarray(t1) - jnp.asarray(t0)).shape
        if shape != (num_levels,):
            raise ValueError(
                f"{type(self).__name__} was given probabilities of shape {shape} for {num_levels} levels; one "
                f"probability per level is expected, shape ({num_levels},), cheapest level first."
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

    def _toss(self, t: Array, h: Array, state: MLEMState) -> Toss:
        """The coins of a step of length `h` at time `t`."""
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
            active = refuse_batch(active, BATCHED)
        return Toss(p, weights, coefficients, active, count > 0, toss, coins)

    def _next(
        self,
        state: MLEMState,
        t: Array,
        counts: Int[Array, " levels"],
        fired: Bool[Array, " levels"],
        toss: Int[Array, ""],
        coins: PyTree[Array],
        last: LastStep | None = None,
    ) -> MLEMState:
        """The state after a step at time `t` that evaluated the levels so many times."""
        firings = state.firings
        if firings is not None:
            row = state.step % self.record
            firings = Firings(
                firings.times.at[row].set(t.astype(firings.times.dtype)),
                firings.active.at[row].set(counts > 0),
                firings.fired.at[row].set(fired),
            )
        evaluations = state.evaluations + counts
        return MLEMState(state.step + 1, toss + 1, coins, evaluations, state.costs, firings, last)

    def func(self, terms: PyTree, t0: RealScalarLike, y0: Y, args: Args) -> Any:
        """The finest level's drift."""
        return terms.vf(t0, y0, args)


def _refuse_batched_array(x: Any) -> Any:
    return refuse_batch(refuse_gradient(x, _GRADIENT), BATCHED) if eqx.is_array(x) else x


def refuse_not_finite(y1: Y, y0: Y) -> Y:
    """An error where a finite state turns into one that is not."""

    def bad(y: Y) -> Bool[Array, ""]:
        # NaN or infinite if any entry is: one multiplication and addition each, faster than a test of each.
        sums = [jnp.sum(jnp.zeros_like(leaf) * leaf) for leaf in jtu.tree_leaves(y)]
        return ~jnp.all(jnp.stack([jnp.isfinite(s) for s in sums]))

    # The old state is looked at in the rare case only.
    turned = jax.lax.cond(bad(y1), lambda: ~bad(y0), lambda: jnp.asarray(False))
    return eqx.error_if(y1, turned, _NOT_FINITE)
