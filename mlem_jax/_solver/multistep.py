"""Linear multistep methods on a fixed grid for drifts at several levels, as a diffrax solver.

The coefficients are data, `multistep_coefficients.py`.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._batching import across_batch, furthest, refuse_batch
from .._custom_types import Args, RealScalarLike, Y
from .._probabilities import Fixed
from .._term import find_multilevel_term, LevelControl, split_terms
from .multistep_coefficients import MultistepCoefficients
from .results import not_finite
from .state import check_state

_BATCHED = (
    "The coefficients of LinearMultistep differ between the trajectories of a vmap, so every level would be evaluated "
    "in every step. Keep the solver out of the vmap: jax.vmap(solve, in_axes=(0, None))(y0, solver)."
)
_OFF_GRID = (
    "LinearMultistep was given a step that is not the next one of its grid. Its coefficients hold for one grid only: "
    "write stepsize_controller=diffrax.StepTo(coefficients.ts) with t0=coefficients.ts[0] and t1=coefficients.ts[-1]."
)
# The start and end of a step may differ from the grid by this fraction of its length, because times are rounded to
# float32.
_TOLERANCE = 1e-2


class MultistepState(eqx.Module):
    """The solver state of [`mlem_jax.LinearMultistep`][]. Pass it to `diffeqsolve` to continue a solve.

    - `step`: number of steps taken.
    - `drifts`: the last `M - 1` drifts of the base, like the state with a leading axis, newest first.
    - `increments`: the last `L` increments of each higher level, like the state with leading axes `(K - 1, L)`, newest
        first; zeros before the first one.
    - `evaluations`: number of evaluations of each level, `(K,)`.
    - `costs`: the term's costs, `(K,)`, or `None`.
    """

    step: Int[Array, "*batch"]
    drifts: PyTree[Array]
    increments: PyTree[Array]
    evaluations: Int[Array, "*batch levels"]
    costs: Float[Array, "*batch levels"] | None


class LinearMultistep(diffrax.AbstractItoSolver):
    r"""A linear multistep method for a drift at several levels, with any coefficients.

    $$\hat x_n = x_n + \sum_{k \in E_n} \sum_{l < L} \gamma_{n,k,l} D_k^{(l)},\quad
      x_{n+1} = \hat x_n + \sum_{i < M} \beta_{n,i} f^1(t_{n-i}, \hat x_{n-i})
        + \sum_{k > 1} \sum_{l < L} \delta_{n,k,l} D_k^{(l)} + g(t_n, x_n) \Delta W_n$$

    The base `f^1`, the cheapest level of the term, is evaluated in every step. In step `n` the levels `k` in the set
    `E_n` (`coefficients.evaluated`) are evaluated too, which gives the new increments `D_k^{(0)} = f^k - f^1`; the
    earlier ones are `D_k^{(1)}, ...`. The state is then moved first, to correct the error of the increments that were
    held since the last evaluation. If `coefficients.repeats` is true, the base is evaluated again at the moved state.
    With a single level this is an explicit linear multistep method.

    Noise of other terms is added as in Euler's method, so for additive noise the strong order is at most 1.

    !!! example

        ```python
        coefficients = MultistepCoefficients.adams_bashforth(ts, drifts=3)
        diffrax.diffeqsolve(
            term, LinearMultistep(coefficients), ts[0], ts[-1], None, y0, stepsize_controller=diffrax.StepTo(ts)
        )
        ```

    **Arguments:**

    - `coefficients`: [`mlem_jax.MultistepCoefficients`][], for example the classical ones. Their NumPy arrays are
        constants of the program: they have no gradient, `vmap` does not map them, and a solver that contains no others
        can be hashed. JAX arrays are data: one compiled program serves all their values.
    - `check_finite`: whether a trajectory stops with an unsuccessful `result` as soon as its state is not finite.
        `False` omits this and the check of the grid at run time; infinity and NaN then propagate, as with
        [`diffrax.Euler`][].

    Solves must use the grid of the coefficients. Raises `ValueError` for terms without a `MultilevelTerm` or with
    another number of levels than the coefficients, and for coefficients that a `vmap` batches; at run time, an error
    for a step off the grid.
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.LocalLinearInterpolation]] = (
        diffrax.LocalLinearInterpolation
    )

    # With constants in place of NumPy's arrays.
    _coefficients: MultistepCoefficients
    check_finite: bool = eqx.field(static=True)

    def __init__(self, coefficients: MultistepCoefficients, check_finite: bool = True):
        self._coefficients = jtu.tree_map(
            lambda x: x if isinstance(x, jax.Array) else Fixed.of(np.asarray(x)), coefficients
        )
        self.check_finite = check_finite

    @property
    def coefficients(self) -> MultistepCoefficients:
        """The coefficients, [`mlem_jax.MultistepCoefficients`][]."""
        return jtu.tree_map(
            lambda x: x.array if isinstance(x, Fixed) else x,
            self._coefficients,
            is_leaf=lambda x: isinstance(x, Fixed),
        )

    def order(self, terms: PyTree) -> None:
        """Unknown, since the coefficients are arbitrary."""
        return None

    def strong_order(self, terms: PyTree) -> None:
        """Unknown."""
        return None

    def init(
        self, terms: PyTree, t0: RealScalarLike, t1: RealScalarLike, y0: Y, args: Args
    ) -> MultistepState:
        """Checks the terms and returns the state before the first step."""
        _, term = find_multilevel_term(terms, "LinearMultistep")
        term.check_levels(t0, y0, args)
        table = self.coefficients
        if len(term.levels) != table.num_levels:
            raise ValueError(
                f"LinearMultistep was given coefficients for {table.num_levels} levels and a MultilevelTerm of "
                f"{len(term.levels)}. Pass the levels that the coefficients were made for."
            )

        def zeros(*leading: int) -> PyTree[Array]:
            return jtu.tree_map(lambda x: jnp.zeros((*leading, *jnp.shape(x)), jnp.result_type(x)), y0)

        return MultistepState(
            step=jnp.asarray(0, jnp.int32),
            drifts=zeros(table.drifts.shape[1] - 1),
            increments=zeros(*table.increments.shape[1:]),
            evaluations=jnp.zeros(len(term.levels), jnp.int32),
            costs=None if term.costs is None else jnp.asarray(term.costs),
        )

    def step(
        self,
        terms: PyTree,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
        solver_state: MultistepState,
        made_jump: Any,
    ) -> tuple[Y, None, dict[str, Y], MultistepState, diffrax.RESULTS]:
        """One step; as [`diffrax.AbstractSolver.step`][]."""
        del made_jump
        place, term = find_multilevel_term(terms, "LinearMultistep")
        self._check_state(solver_state, len(term.levels))
        drift_term, dt, others = split_terms(terms, place, t0, t1)
        row = self._row(t0, t1, dt, solver_state.step)
        numbers = jnp.arange(len(term.levels))

        def evaluate(y: Y, active: Bool[Array, " levels"], coefficients: Array) -> Y:
            one = jnp.ones((), coefficients.dtype)
            return drift_term.vf_prod(t0, y, args, LevelControl(one, coefficients, active))

        base = (numbers == 0).astype(float)
        drift = evaluate(y0, numbers == 0, base)
        y, increments = y0, solver_state.increments
        counts = jnp.append(jnp.ones((), jnp.int32), row.evaluated.astype(jnp.int32))
        if len(term.levels) > 1:
            active = jnp.append(jnp.zeros((), bool), row.evaluated)
            found = evaluate(y0, active, jnp.eye(len(term.levels))[1:])
            found = jtu.tree_map(lambda fine, coarse: fine - coarse, found, _repeated(drift, found))
            increments = _remember(row.evaluated, found, increments)
            y = _add(y0, row.corrections, increments)
            again = evaluate(y, (numbers == 0) & row.repeats, base)
            drift = jtu.tree_map(lambda new, old: jnp.where(row.repeats, new, old), again, drift)
            counts = counts.at[0].add(row.repeats.astype(jnp.int32))
        drifts = jtu.tree_map(lambda new, old: jnp.concatenate([new[None], old]), drift, solver_state.drifts)
        y1 = _add(_add(y, row.drifts, drifts), row.increments, increments)
        for other, control in others:
            y1 = jtu.tree_map(jnp.add, y1, other.vf_prod(t0, y0, args, control))
        result = not_finite("LinearMultistep", y0, y1) if self.check_finite else diffrax.RESULTS.successful
        state = MultistepState(
            step=solver_state.step + 1,
            drifts=jtu.tree_map(lambda x: x[:-1], drifts),
            increments=increments,
            evaluations=solver_state.evaluations + counts,
            costs=solver_state.costs,
        )
        return y1, None, dict(y0=y0, y1=y1), state, result

    def _check_state(self, state: Any, num_levels: int) -> None:
        """Raises `ValueError` unless a state is that of a solve with as many coefficients as these."""
        check_state("LinearMultistep", MultistepState, state, num_levels)
        kept = self.coefficients.drifts.shape[1] - 1, *self.coefficients.increments.shape[2:]
        parts = (state.drifts, 0), (state.increments, 1)
        remembered = tuple(jtu.tree_leaves(tree)[0].shape[axis] for tree, axis in parts)
        if remembered != kept:
            raise ValueError(
                f"LinearMultistep was given the solver_state of a solve with other coefficients, which keeps "
                f"{remembered[0]} drifts and {remembered[1]} increments of each level; {kept[0]} and {kept[1]} are "
                "expected. Continue a solve with the coefficients that began it."
            )

    def _row(self, t0: RealScalarLike, t1: RealScalarLike, dt: RealScalarLike, step: Array) -> "_Row":
        """The coefficients of a step, whose index is the same for all trajectories of a batch."""
        table = jtu.tree_map(jnp.asarray, self.coefficients)
        current = furthest(step)
        (number,), _ = across_batch(step[None], current)
        last = len(self.coefficients.evaluated) - 1
        # diffeqsolve runs backward solves in the time -t.
        sign = jnp.where(jnp.asarray(dt) >= 0, 1, -1)
        start, end = table.ts[number], table.ts[number + 1]
        t0, t1 = (jnp.asarray(t).astype(start.dtype) * sign.astype(start.dtype) for t in (t0, t1))
        slack = _TOLERANCE * jnp.abs(end - start)
        off = (number > last) | (jnp.abs(t0 - start) > slack) | (jnp.abs(t1 - end) > slack)
        # A trajectory of a batch that has finished takes steps of length zero while the others continue.
        if self.check_finite:
            number = eqx.error_if(number, off & (t0 != t1) & current, _OFF_GRID)
        number = refuse_batch(jnp.minimum(number, last), _BATCHED)
        evaluated, repeats = (refuse_batch(x[number], _BATCHED) for x in (table.evaluated, table.repeats))
        corrections = table.corrections[number] * evaluated[:, None].astype(table.corrections.dtype)
        return _Row(table.drifts[number], table.increments[number], evaluated, corrections, repeats)

    def func(self, terms: PyTree, t0: RealScalarLike, y0: Y, args: Args) -> Any:
        """The finest level's drift."""
        return terms.vf(t0, y0, args)


class _Row(eqx.Module):
    """The coefficients of one step."""

    drifts: Float[Array, " drifts"]
    increments: Float[Array, "levels_above held"]
    evaluated: Bool[Array, " levels_above"]
    corrections: Float[Array, "levels_above held"]
    repeats: Bool[Array, ""]


def _repeated(y: PyTree[Array], like: PyTree[Array]) -> PyTree[Array]:
    """A state repeated along a leading axis, with the shape of `like`."""
    return jtu.tree_map(lambda x, target: jnp.broadcast_to(x[None], target.shape), y, like)


def _remember(evaluated: Bool[Array, " levels_above"], found: PyTree, old: PyTree) -> PyTree:
    """The increments of each level, newest first. Those of the evaluated levels are shifted by one."""

    def leaf(new: Array, old: Array) -> Array:
        moved = jnp.concatenate([new[:, None], old[:, :-1]], axis=1)
        return jnp.where(evaluated.reshape(-1, *[1] * (old.ndim - 1)), moved, old)

    return jtu.tree_map(leaf, found, old)


def _add(y: Y, coefficients: Array, parts: PyTree) -> Y:
    """The state plus the parts times their coefficients, summed over the parts' leading axes."""

    def leaf(y: Array, part: Array) -> Array:
        return y + jnp.tensordot(coefficients.astype(y.dtype), part, axes=coefficients.ndim)

    return jtu.tree_map(lambda y, part: leaf(jnp.asarray(y), part), y, parts)
