"""Trajectories of pilots, and the sweep back along them that says what a kick does to the end state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from .._custom_types import Args, Y
from .._solver.mlab2 import MLAB2
from .._term import find_multilevel_term, MultilevelTerm
from .plan import keep_levels

MakeTerms = Callable[[PRNGKeyArray], PyTree]


class Own(NamedTuple):
    """What a pilot has of its own beside its start, or what many have: the key of its noise and its label."""

    noise: Key[Array, "..."]
    label: PyTree = None

    def args(self, shared: Args) -> Args:
        """What the pilot hands to the levels: its label if it has one, else what all hand to them."""
        return shared if self.label is None else self.label


class Same(eqx.Module):
    """The same terms for every pilot. A module, so that its arrays are arguments of compiled code."""

    terms: PyTree

    def __call__(self, key: PRNGKeyArray) -> PyTree:
        return self.terms


class Only(eqx.Module):
    """Terms with one of their levels alone, whose number is an argument of compiled code too."""

    make_terms: MakeTerms
    place: int | None = eqx.field(static=True)
    level: Int[Array, ""] = eqx.field(converter=jnp.asarray)

    def __call__(self, key: PRNGKeyArray) -> PyTree:
        terms = self.make_terms(key)
        _, term = find_multilevel_term(terms)
        # Plain functions, because lax.switch wants to hash its branches and modules have no hash.
        branches = [lambda t, y, args, f=f: f(t, y, args) for f in term.levels]
        kept = MultilevelTerm(lambda t, y, args: jax.lax.switch(self.level, branches, t, y, args))
        if self.place is None:
            return kept
        return diffrax.MultiTerm(*(kept if i == self.place else x for i, x in enumerate(terms.terms)))


class Planned(eqx.Module):
    """Terms with some of their levels."""

    make_terms: MakeTerms
    levels: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray) -> PyTree:
        return keep_levels(self.make_terms(key), self.levels)


def _solve(
    solver: Any, terms: PyTree, ts: Array, y0: Y, args: Args, saveat: diffrax.SaveAt, **settings: Any
) -> Any:
    return diffrax.diffeqsolve(
        terms,
        solver,
        ts[0],
        ts[-1],
        None,
        y0,
        args,
        stepsize_controller=diffrax.StepTo(ts),
        saveat=saveat,
        max_steps=ts.shape[0] - 1,
        **settings,
    )


@eqx.filter_jit
def _ends(
    solver: diffrax.AbstractSolver,
    make_terms: MakeTerms,
    ts: Float[Array, " times"],
    y0s: Y,
    last: PyTree,
    args: Args,
    own: Own,
) -> tuple[Y, PyTree]:
    """End states of a batch of trajectories and what the solver remembers of them, given what it remembered."""

    def one(y0: Y, last: PyTree, own: Own) -> tuple[Y, PyTree]:
        terms, given = make_terms(own.noise), own.args(args)
        state = solver.init(terms, ts[0], ts[1], y0, given)
        if last is not None:
            state = eqx.tree_at(lambda s: s.last, state, last)
        saveat = diffrax.SaveAt(t1=True, solver_state=True)
        sol = _solve(solver, terms, ts, y0, given, saveat, solver_state=state)
        now = None if last is None else sol.solver_state.last
        return jtu.tree_map(lambda leaf: leaf[-1], sol.ys), now

    return jax.vmap(one)(y0s, last, own)


def segmented_ends(
    solver_of: Callable[[slice], diffrax.AbstractSolver],
    make_terms: MakeTerms,
    ts: Array,
    segment: int,
    ys: Y,
    args: Args,
    own: Own,
) -> Y:
    """End states of solves in segments of so many steps, with the solver of each: so one compiled solve serves
    all step counts. What a two-step method remembers goes from segment to segment."""
    last = None
    first = solver_of(slice(0, segment))
    if isinstance(first, MLAB2):
        last = jax.vmap(lambda y: first.no_step(ts[0], ts[1], y))(ys)
    for start in range(0, len(ts) - 1, segment):
        solver = solver_of(slice(start, start + segment))
        ys, last = _ends(solver, make_terms, ts[start : start + segment + 1], ys, last, args, own)
    return ys


def squares(ends: list[PyTree], others: list[PyTree]) -> np.ndarray:
    """Mean squares over the state's components, for each pilot; infinite where a solve exploded."""
    found = []
    for end, other in zip(ends, others, strict=True):
        pairs = zip(jtu.tree_leaves(end), jtu.tree_leaves(other), strict=True)
        apart = [(np.asarray(a) - np.asarray(b)).reshape(a.shape[0], -1) for a, b in pairs]
        found.append(np.mean(np.concatenate(apart, axis=1).astype(float) ** 2, axis=1))
    return np.nan_to_num(np.concatenate(found), nan=np.inf, posinf=np.inf)


def root_mean(squares: Float[np.ndarray, " pilots"]) -> tuple[float, float]:
    """Root of the mean over pilots, and its relative standard error from their spread."""
    mean = float(np.mean(squares))
    if not 0 < mean < np.inf:
        return float(np.sqrt(mean)), 0.0
    return float(np.sqrt(mean)), float(0.5 * np.std(squares) / np.sqrt(len(squares)) / mean)


def rms(ends: list[PyTree], others: list[PyTree]) -> float:
    """RMS distance over pilots and components."""
    return root_mean(squares(ends, others))[0]


@eqx.filter_jit
def sweep(
    make_terms: MakeTerms,
    make_cheap: MakeTerms,
    ts: Float[Array, " times"],
    y0s: Y,
    args: Args,
    probes: int,
    own: Own,
    probe_keys: Key[Array, " pilots"],
) -> tuple[Float[Array, "steps levels pilots"], Float[Array, "steps levels pilots probes"]]:
    """Mean squares of `D_k`, and `J D_k` in random directions, at the start of every step along Euler on
    the finest level; `J` is that of the flow of `make_cheap`'s terms. Mean squares over directions are
    mean squares over the state's components."""
    components = sum(leaf[0].size for leaf in jtu.tree_leaves(y0s))

    def one_path(y0: Y, own: Own, key: PRNGKeyArray) -> tuple[Array, Array]:
        terms, cheap_terms = make_terms(own.noise), make_cheap(own.noise)
        given = own.args(args)
        _, term = find_multilevel_term(terms)
        saveat = diffrax.SaveAt(t0=True, steps=True)
        path = _solve(diffrax.Euler(), terms, ts, y0, given, saveat).ys

        def back(adjoints: Y, step: Array) -> tuple[Y, tuple[Array, Array]]:
            y = jtu.tree_map(lambda leaf: leaf[step], path)
            increments = _increments(term.levels, ts[step], y, given)
            squares = jnp.stack([_dot(d, d) for d in increments]) / components
            kicks = jnp.stack([jax.vmap(lambda a, d=d: _dot(a, d))(adjoints) for d in increments])

            def advance(y: Y) -> Y:
                return jtu.tree_map(jnp.add, y, _step(cheap_terms, ts[step], ts[step + 1], y, given))

            _, pull = jax.vjp(advance, y)
            (adjoints,) = jax.vmap(pull)(adjoints)
            return adjoints, (squares, kicks / components**0.5)

        leaves, structure = jtu.tree_flatten(y0)
        directions = [
            jr.rademacher(jr.fold_in(key, i), (probes, *leaf.shape), leaf.dtype)
            for i, leaf in enumerate(leaves)
        ]
        steps = jnp.arange(ts.shape[0] - 1)
        _, out = jax.lax.scan(back, jtu.tree_unflatten(structure, directions), steps, reverse=True)
        return out

    squares, kicks = jax.vmap(one_path)(y0s, own, probe_keys)
    return jnp.moveaxis(squares, 0, 2), jnp.moveaxis(kicks, 0, 2)


def _increments(levels: tuple[Callable, ...], t: Array, y: Y, args: Args) -> list[Y]:
    drifts = [jtu.tree_map(lambda f, yi: f.astype(yi.dtype), level(t, y, args), y) for level in levels]
    pairs = zip(drifts[1:], drifts, strict=False)
    return [drifts[0]] + [jtu.tree_map(jnp.subtract, fine, coarse) for fine, coarse in pairs]


def _dot(a: Y, b: Y) -> Array:
    products = jtu.tree_map(lambda u, v: jnp.sum(u * v), a, b)
    return jnp.sum(jnp.stack(jtu.tree_leaves(products)))


def _step(terms: PyTree, t0: Array, t1: Array, y: Y, args: Args) -> Y:
    """One Euler increment from `t0` to `t1`, forward or backward in time (a control is only asked for
    intervals in forward time, as diffrax does it)."""
    backward = t1 < t0
    control = terms.contr(jnp.minimum(t0, t1), jnp.maximum(t0, t1))
    control = jtu.tree_map(lambda c: jnp.where(backward, -c, c), control)
    return terms.vf_prod(t0, y, args, control)
