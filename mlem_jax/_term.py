"""The diffrax term of a drift that is available at several levels."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from ._batching import any_in_batch
from ._checks import as_costs
from ._custom_types import Args, Numbers, RealScalarLike, Y

# A function of a random key that returns the terms of one trajectory, with noise of this key.
MakeTerms = Callable[[PRNGKeyArray], PyTree]


class LevelControl(eqx.Module):
    """The control that the multilevel solvers pass to [`mlem_jax.MultilevelTerm`][] instead of the increment of time.

    - `dt`: the signed length of the step.
    - `coefficients`: the factors of the levels' drifts, `(K,)`; in `MLEM` they are `c_k = w_k - w_{k+1}`. An array
        `(M, K)` asks for `M` sums of drifts, which are stacked along a leading axis.
    - `active`: which levels are evaluated, `(K,)`, without batch dimensions.
    """

    dt: RealScalarLike
    coefficients: Float[Array, "*sums levels"]
    active: Bool[Array, " levels"]


def _describe(x: PyTree) -> str:
    return eqx.tree_pformat(x).replace("\n", " ")


class MultilevelTerm(diffrax.AbstractTerm):
    """The term `f(t, y, args) dt` with a drift that is available at levels `f^1, ..., f^K` of increasing accuracy and
    cost.

    [`mlem_jax.MLEM`][], [`mlem_jax.MLAB2`][] and [`mlem_jax.LinearMultistep`][] combine the levels. For any other
    diffrax solver (`Euler`, `Heun`, `ShARK`, ...) the term is the finest level.

    !!! example

        ```python
        term = MultilevelTerm(small, large)
        diffrax.diffeqsolve(term, MLEM([1.0, 0.1], key=key), t0, t1, dt0, y0)
        ```

    **Arguments:**

    - `*levels`: callables `(t, y, args) -> drift`, cheapest first, for example `equinox.Module`s. Each returns a PyTree
        with the structure and shapes of `y`. All levels return the same dtypes, which may be narrower than those of `y`
        (bfloat16 levels for a float32 state).
    - `costs`: cost of one evaluation of each level in any unit (seconds, FLOPs), cheapest first. Reports and plans use
        the costs; a solve does not.

    Raises `ValueError` without levels, for a level that is not callable, or unless there is one positive cost per
    level, in increasing order.
    """

    levels: tuple[Callable[[RealScalarLike, Y, Args], Y], ...]
    costs: tuple[float, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        *levels: Callable[[RealScalarLike, Y, Args], Y],
        costs: Numbers | None = None,
    ):
        if not levels:
            raise ValueError(
                "MultilevelTerm was given no levels. Write MultilevelTerm(cheap, ..., finest) with "
                "callables (t, y, args) -> drift, cheapest first."
            )
        for i, level in enumerate(levels):
            if not callable(level):
                kind = type(level).__name__
                hint = " Unpack the list: MultilevelTerm(*levels)." if isinstance(level, list | tuple) else ""
                if isinstance(level, diffrax.AbstractTerm):
                    hint = " Pass the vector field itself, not a term around it."
                raise ValueError(
                    f"Level {i + 1} of MultilevelTerm is a {kind}; a callable (t, y, args) -> drift is "
                    f"expected.{hint}"
                )
        if costs is not None:
            costs = tuple(as_costs("MultilevelTerm", costs, len(levels)).tolist())
        self.levels = levels
        self.costs = costs

    def vf(self, t: RealScalarLike, y: Y, args: Args) -> Y:
        """The drift of the finest level, with the dtypes of `y`."""
        return self._evaluate(len(self.levels) - 1, t, y, args)

    def contr(self, t0: RealScalarLike, t1: RealScalarLike, **kwargs: Any) -> RealScalarLike:
        """The increment of time, `t1 - t0`."""
        return t1 - t0

    def prod(self, vf: Y, control: RealScalarLike) -> Y:
        """The drift times the increment of time."""
        return jtu.tree_map(lambda v: jnp.asarray(control).astype(v.dtype) * v, vf)

    def vf_prod(self, t: RealScalarLike, y: Y, args: Args, control: "RealScalarLike | LevelControl") -> Y:
        """The increment of `y` due to the drift. With a `LevelControl` it is `dt` times the sum (or sums) of `c_k f^k`,
        in which only active levels are evaluated."""
        if not isinstance(control, LevelControl):
            return self.prod(self.vf(t, y, args), control)
        # A level that is active for some trajectories of a batch is evaluated for all of them and masked: a batched
        # predicate would turn lax.cond into a select, which always evaluates the level.
        runs = any_in_batch(control.active)
        sums = control.coefficients.shape[:-1]
        total = jtu.tree_map(lambda leaf: jnp.zeros((*sums, *jnp.shape(leaf)), jnp.result_type(leaf)), y)
        for k in range(len(self.levels)):
            # In the wider of the two dtypes, so that narrow probabilities do not round the step.
            dt = jnp.asarray(control.dt)
            with jax.numpy_dtype_promotion("standard"):
                dtype = jnp.promote_types(dt.dtype, control.coefficients.dtype)
            factor = control.coefficients[..., k].astype(dtype) * dt.astype(dtype)

            def add(total: Y, k: int = k, factor: Array = factor) -> Y:
                drift = self._evaluate(k, t, y, args)

                def leaf(s: Array, f: Array) -> Array:
                    product = (
                        jnp.multiply.outer(factor.astype(f.dtype), f) if sums else factor.astype(f.dtype) * f
                    )
                    return jnp.where(control.active[k], s + product, s)

                return jtu.tree_map(leaf, total, drift)

            # The identity is the false branch.
            total = jax.lax.cond(runs[k], add, lambda total: total, total)
        return total

    def _evaluate(self, k: int, t: RealScalarLike, y: Y, args: Args) -> Y:
        return self._fit(k, self.levels[k](t, y, args), y)

    def _fit(self, k: int, out: Y, y: Y) -> Y:
        """The output of level `k` with the dtypes of `y`. Raises `ValueError` if it does not fit `y`."""
        if jtu.tree_structure(out) != jtu.tree_structure(y) or any(
            jnp.shape(a) != jnp.shape(b)
            for a, b in zip(jtu.tree_leaves(out), jtu.tree_leaves(y), strict=True)
        ):
            raise ValueError(
                f"Level {k + 1} of MultilevelTerm returned {_describe(out)}, but the state is "
                f"{_describe(y)}. A drift has the structure and shapes of the state."
            )

        def cast(f: Array, yi: Array) -> Array:
            f = jnp.asarray(f)
            with jax.numpy_dtype_promotion("standard"):
                fits = jnp.result_type(f.dtype, yi.dtype) == yi.dtype
            if not fits or not jnp.issubdtype(f.dtype, jnp.inexact):
                raise ValueError(
                    f"Level {k + 1} of MultilevelTerm returned dtype {f.dtype} for a state of dtype "
                    f"{yi.dtype}. Return the state's dtype or a narrower floating one; for example end "
                    f"the level with .astype({yi.dtype})."
                )
            return f.astype(yi.dtype)

        return jtu.tree_map(cast, out, y)

    def check_levels(self, t: RealScalarLike, y: Y, args: Args) -> None:
        """Raises `ValueError` unless all levels return the structure and shapes of `y` and the same
        dtypes as each other. Traces the levels without running them."""
        dtypes = []
        for k, level in enumerate(self.levels):
            # Both results from one trace, because tracing a large network takes a tenth of a second.
            def checked(k: int = k, level: Callable = level) -> tuple[Y, Y]:
                out = level(t, y, args)
                return self._fit(k, out, y), jtu.tree_map(jnp.asarray, out)

            _, out = eqx.filter_eval_shape(checked)
            dtypes.append([str(leaf.dtype) for leaf in jtu.tree_leaves(out)])
        for k, kinds in enumerate(dtypes):
            if kinds != dtypes[-1]:
                raise ValueError(
                    f"Level {k + 1} of MultilevelTerm returns dtype {', '.join(kinds)} and the finest level "
                    f"{', '.join(dtypes[-1])}. Levels must agree: cast inside the level, for example "
                    f"lambda t, y, args: level(t, y, args).astype({dtypes[-1][0]})."
                )


def find_multilevel_term(
    terms: PyTree, caller: str = "A multilevel solver"
) -> tuple[int | None, MultilevelTerm]:
    """The index of the MultilevelTerm in a `MultiTerm`, `None` for a bare MultilevelTerm, and the term itself.

    Raises `ValueError` unless there is exactly one MultilevelTerm; the message names the caller and says what to write.
    """

    def inner(term: Any) -> Any:
        # diffeqsolve puts each term into a private wrapper that holds it as `.term`.
        return getattr(term, "term", term)

    members = list(terms.terms) if isinstance(terms, diffrax.MultiTerm) else [terms]
    places = [i for i, term in enumerate(members) if isinstance(inner(term), MultilevelTerm)]
    if len(places) == 1:
        place = places[0]
        return (place if isinstance(terms, diffrax.MultiTerm) else None), inner(members[place])
    names = ", ".join(type(inner(term)).__name__ for term in members)
    shown = f"MultiTerm({names})" if isinstance(terms, diffrax.MultiTerm) else names
    if "AdjointTerm" in names:
        raise ValueError(
            f"{caller} cannot run under BacksolveAdjoint, which solves another equation backwards in time. Use "
            "diffrax.RecursiveCheckpointAdjoint() (the default), DirectAdjoint() or ForwardMode()."
        )
    if len(places) > 1:
        raise ValueError(
            f"{caller} was given {shown}; it needs exactly one MultilevelTerm. Add the drifts inside the "
            "levels: MultilevelTerm(lambda t, y, args: cheap1(t, y, args) + cheap2(t, y, args), ...)."
        )
    raise ValueError(
        f"{caller} was given {shown}; it needs exactly one MultilevelTerm. For an ODE write "
        "MultilevelTerm(cheap, ..., finest) in place of ODETerm(finest); for an SDE write "
        "MultiTerm(MultilevelTerm(cheap, ..., finest), ControlTerm(diffusion, brownian_motion))."
    )


def split_terms(
    terms: PyTree, place: int | None, t0: RealScalarLike, t1: RealScalarLike
) -> tuple[Any, Any, list[tuple[Any, Any]]]:
    """For a step: the multilevel term at an index as `find_multilevel_term` returns it, its increment of time, and the
    other terms with their controls."""
    if place is None:
        return terms, terms.contr(t0, t1), []
    pairs = list(zip(terms.terms, terms.contr(t0, t1), strict=True))
    drift, dt = pairs.pop(place)
    return drift, dt, pairs


def with_levels(terms: PyTree, levels: tuple[int, ...], *, costs: Numbers | None = None) -> PyTree:
    """The same terms with a subset of their levels, given by index, cheapest first; with the given costs, or else with
    the term's. Raises `ValueError` if the term has fewer levels."""
    place, term = find_multilevel_term(terms)
    if len(term.levels) <= max(levels):
        raise ValueError(
            f"Level {max(levels) + 1} is needed and the MultilevelTerm has {len(term.levels)} levels. Pass terms with "
            "all levels."
        )
    if costs is None and term.costs is not None:
        costs = [term.costs[k] for k in levels]
    kept = MultilevelTerm(*[term.levels[k] for k in levels], costs=costs)
    if place is None:
        return kept
    return diffrax.MultiTerm(*(kept if i == place else other for i, other in enumerate(terms.terms)))


class FixedTerms(eqx.Module):
    """The same terms for every key. A module, so that its arrays are arguments of compiled code."""

    terms: PyTree

    def __call__(self, key: PRNGKeyArray) -> PyTree:
        return self.terms


def as_terms_of_key(terms: PyTree | MakeTerms) -> MakeTerms:
    """Terms, or a function of a random key that returns them, as such a function."""
    if callable(terms) and not isinstance(terms, diffrax.AbstractTerm):
        return terms
    return FixedTerms(terms)
