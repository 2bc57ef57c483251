"""The abstract base of the multilevel solvers with coins: settings, checks, counters, and the draw of a step's coins.

The solvers are in `mlem.py` (first order) and `mlab2.py` (second order).
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .._batching import across_batch, from_current, furthest, refuse_batch, refuse_gradient
from .._checks import as_int, as_key
from .._coins import AbstractCoins, as_coins, as_text, level_coefficients
from .._custom_types import Args, Numbers, RealScalarLike, Y
from .._probabilities import AbstractProbabilities, as_probabilities
from .._term import find_multilevel_term, MultilevelTerm
from .state import AbstractMultilevelState, check_state, Firings

_BATCHED = (
    "The coins of {} differ between the trajectories of a vmap (its key or probabilities are batched), so every level "
    "would be evaluated for every trajectory, without any saving. "
    "Keep the solver out of the vmap, for example jax.vmap(solve, in_axes=(0, None))(y0, solver), or give "
    "the solver shared=False, coins per trajectory, whose cost is that of the whole batch."
)
_TIMES_DIFFER = (
    "The probabilities differ between the trajectories that {} solves in a vmap, because these have different step "
    "times. Give all trajectories the same t0, t1 and dt0, or probabilities that do not depend on time, "
    "or coins per trajectory with shared=False."
)
_GRADIENT = (
    "{} cannot be differentiated with respect to its probabilities: the coins are discrete, so autodiff would not "
    "return the derivative of the expected result. mlem_jax.learn_probabilities estimates that derivative."
)
# Folded into the key of the coins: "coin" in ASCII.
_COINS = 0x636F696E
_NOT_PROBABILITIES = (
    "The probabilities given to {} are not all in (0, 1]. Use mlem_jax.Rates(...) for rates per unit "
    "time, and leave a level that should never be evaluated out of MultilevelTerm."
)


class Draw(NamedTuple):
    """The coins of one step.

    - `p`, `weights`: probabilities and weights of the levels, `(K,)`.
    - `coefficients`, `active`: `c_k = w_k - w_{k+1}`, and which of these are not zero, `(K,)`.
    - `fired`: which levels fired, `(K,)`.
    - `number`: index of the draw.
    - `coins`: the coin policy's next state.
    """

    p: Float[Array, " levels"]
    weights: Float[Array, " levels"]
    coefficients: Float[Array, " levels"]
    active: Bool[Array, " levels"]
    fired: Bool[Array, " levels"]
    number: Int[Array, ""]
    coins: PyTree[Array]


class AbstractMultilevelSolver(diffrax.AbstractItoSolver):
    """A solver that evaluates the levels of one [`mlem_jax.MultilevelTerm`][] in steps chosen by a coin policy."""

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.LocalLinearInterpolation]] = (
        diffrax.LocalLinearInterpolation
    )
    state_cls: eqx.AbstractClassVar[type[AbstractMultilevelState]]

    probabilities: eqx.AbstractVar[AbstractProbabilities]
    coins: eqx.AbstractVar[AbstractCoins]
    _key: eqx.AbstractVar[PRNGKeyArray | None]
    shared: eqx.AbstractVar[bool]
    record: eqx.AbstractVar[int]
    check_finite: eqx.AbstractVar[bool]

    @property
    def key(self) -> PRNGKeyArray:
        """The key of the coins; a fixed key for deterministic coins."""
        return jr.key(0) if self._key is None else self._key

    def func(self, terms: PyTree, t0: RealScalarLike, y0: Y, args: Args) -> Any:
        """The drift of the finest level. diffrax calls this function once per step for
        [`diffrax.steady_state_event`][]; the solver does not count these evaluations."""
        return terms.vf(t0, y0, args)

    def _checked_settings(
        self,
        probabilities: Numbers | AbstractProbabilities | Callable[[RealScalarLike], Numbers],
        coins: AbstractCoins,
        key: PRNGKeyArray | None,
        record: int,
    ) -> tuple[AbstractProbabilities, AbstractCoins, PRNGKeyArray | None, int]:
        name = type(self).__name__
        coins = as_coins(name, coins)
        if key is not None:
            # Folded, so that coins and noise are independent even if a user gives both the same key.
            key = jr.fold_in(as_key(name, key), _COINS)
        elif not coins.deterministic:
            raise ValueError(f"{name} needs a key for {coins.name}; write key=jax.random.key(0).")
        if coins.deterministic:
            # Without a key, a solver with constant probabilities can be hashed.
            key = None
        wanted = "the number of steps to keep is expected, for example record=4096, or 0 for none"
        record = as_int(name, record, name="record", least=0, expected=wanted)
        # Probabilities computed from differentiated numbers are refused. Those inside a solver that is itself a part of
        # a differentiated model are treated as constants.
        made = _map_arrays(
            lambda x: refuse_gradient(x, _GRADIENT.format(name)), as_probabilities(probabilities)
        )
        return made, coins, key, record

    def _initial(
        self, terms: PyTree, t0: RealScalarLike, t1: RealScalarLike, y0: Y, args: Args
    ) -> dict[str, Any]:
        """Checks the terms and returns those fields of the initial state that all solvers have."""
        _, term = find_multilevel_term(terms, type(self).__name__)
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
        return dict(
            step=jnp.asarray(0, jnp.int32),
            draws=jnp.asarray(0, jnp.int32),
            coins=self.coins.init(num_levels),
            policy=as_text(self.coins),
            evaluations=jnp.zeros(num_levels, jnp.int32),
            costs=None if term.costs is None else jnp.asarray(term.costs),
            firings=firings,
        )

    def _check_state(self, state: Any, term: MultilevelTerm) -> None:
        """Raises `ValueError` unless the state belongs to this kind of solver, these coins and this number of
        levels."""
        name = type(self).__name__
        check_state(name, self.state_cls, state, len(term.levels))
        policy = as_text(self.coins)
        if state.policy != policy:
            raise ValueError(
                f"{name} was given the solver_state of a solve with coins={state.policy} and has coins={policy}; "
                "continue a solve with the same coins."
            )
        recorded = 0 if state.firings is None else state.firings.times.shape[0]
        if recorded != self.record:
            raise ValueError(
                f"{name} has record={self.record} and was given the solver_state of a solve with record={recorded}; "
                "continue a solve with the same record."
            )

    def _batched_message(self) -> str:
        return _BATCHED.format(type(self).__name__)

    def _check(self, x: Any, wrong: Any, message: str) -> Any:
        """`x`, with an error at run time where `wrong` is true, unless `check_finite=False`."""
        return eqx.error_if(x, wrong, message) if self.check_finite else x

    def _draw_coins(self, t: Array, h: Array, state: AbstractMultilevelState) -> Draw:
        """The coins of a step of length `h` at time `t`."""
        name = type(self).__name__
        t, h = jax.lax.stop_gradient((t, h))
        probabilities = _map_arrays(jax.lax.stop_gradient, self.probabilities)
        if self.shared:
            probabilities = _map_arrays(lambda x: refuse_batch(x, self._batched_message()), probabilities)
        p = refuse_gradient(probabilities(t, h), _GRADIENT.format(name))
        # A trajectory of a batch that has reached its t1 takes steps of length zero while the others continue.
        waiting = h <= 0
        number, coins = state.draws, state.coins
        current = furthest(jnp.where(waiting, -1, number)) if self.shared else None
        if current is None or not probabilities.constant_in_time:
            p = jnp.where(waiting, jnp.ones_like(p), p)
        bounds = self.probabilities.bounds
        if bounds is None or not (np.all(bounds[0] > 0) and np.all(bounds[1] <= 1)):
            p = self._check(p, ~jnp.all((p > 0) & (p <= 1)), _NOT_PROBABILITIES.format(name))
        if current is not None:
            number, coins = from_current((number, coins), current)
            if not probabilities.constant_in_time:
                p, same = across_batch(p, current)
                p = self._check(p, ~same, _TIMES_DIFFER.format(name))
        count, coins = self.coins.draw(p, coins, number, self.key)
        weights = count.astype(p.dtype) / p
        coefficients = level_coefficients(weights)
        active = coefficients != 0
        if self.shared:
            active = refuse_batch(active, self._batched_message())
        return Draw(p, weights, coefficients, active, count > 0, number, coins)

    def _next(
        self,
        state: AbstractMultilevelState,
        t: Array,
        counts: Int[Array, " levels"],
        fired: Bool[Array, " levels"],
        number: Int[Array, ""],
        coins: PyTree[Array],
    ) -> dict[str, Any]:
        """Those fields of the next state that all solvers have, after a step at time `t` in which the levels were
        evaluated `counts` times."""
        firings = state.firings
        if firings is not None:
            row = state.step % self.record
            firings = Firings(
                firings.times.at[row].set(t.astype(firings.times.dtype)),
                firings.active.at[row].set(counts > 0),
                firings.fired.at[row].set(fired),
            )
        return dict(
            step=state.step + 1,
            draws=number + 1,
            coins=coins,
            policy=state.policy,
            evaluations=state.evaluations + counts,
            costs=state.costs,
            firings=firings,
        )


def with_folded_key(solver: diffrax.AbstractSolver, number: Int[Array, ""]) -> diffrax.AbstractSolver:
    """The solver with its key folded with a number, for independent coins. A solver that is not one of mlem_jax's must
    have its key in a field `key`."""
    # The field and not the property `key`, because `tree_at` needs a node of the tree.
    field = "_key" if isinstance(solver, AbstractMultilevelSolver) else "key"
    return eqx.tree_at(lambda s: getattr(s, field), solver, jr.fold_in(getattr(solver, field), number))


def _map_arrays(function: Callable[[Array], Array], tree: Any) -> Any:
    """The same PyTree with a function applied to its floating-point arrays."""
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(jtu.tree_map(function, arrays), rest)
