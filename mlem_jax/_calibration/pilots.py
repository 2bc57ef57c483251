"""Pilot trajectories: their inputs, their terms, and solves of batches of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree, Shaped

from .._custom_types import Args, RealScalarLike, Y
from .._solver import AbstractMethod
from .._term import find_multilevel_term, MakeTerms, MultilevelTerm, with_levels

# Takes the name of the current stage, and the amount of work done since the last call.
ReportProgress = Callable[[str, int], None]


class PilotInputs(NamedTuple):
    """The inputs of a pilot beside its initial state: the key of its noise, and its label. With a leading axis, those
    of several pilots."""

    noise: Key[Array, "..."]
    label: PyTree = None

    def args(self, shared: Args) -> Args:
        """The `args` of the levels: the pilot's label if it has one, or else the `args` that all pilots share."""
        return shared if self.label is None else self.label


class SingleLevelTerms(eqx.Module):
    """Terms with one of their levels. Its index is an argument of compiled code, so all levels share one
    compilation."""

    make_terms: MakeTerms
    place: int | None = eqx.field(static=True)
    level: Int[Array, ""] = eqx.field(converter=jnp.asarray)

    def __call__(self, key: PRNGKeyArray) -> PyTree:
        terms = self.make_terms(key)
        _, term = find_multilevel_term(terms)

        def selected(t: RealScalarLike, y: Y, args: Args) -> Y:
            # lax.switch hashes its branches, so these are functions and not modules, which have no hash. They capture
            # args, which may contain objects that are not arrays.
            branches = [lambda t, y, f=f: f(t, y, args) for f in term.levels]
            return jax.lax.switch(self.level, branches, t, y)

        kept = MultilevelTerm(selected)
        if self.place is None:
            return kept
        return diffrax.MultiTerm(*(kept if i == self.place else x for i, x in enumerate(terms.terms)))


class LevelSubsetTerms(eqx.Module):
    """Terms with a subset of their levels."""

    make_terms: MakeTerms
    levels: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray) -> PyTree:
        return with_levels(self.make_terms(key), self.levels)


class Pilots(NamedTuple):
    """The problem and its pilot trajectories.

    - `make_terms`: a function of a key that returns a pilot's terms; `place` and `term`: the index of the multilevel
        term in them (`None` if it is alone), and that term.
    - `ts`: the finest grid; `args`: what all pilots share.
    - `batches`: initial states and inputs, in batches.
    """

    make_terms: MakeTerms
    place: int | None
    term: MultilevelTerm
    ts: Float[Array, " times"]
    args: Args
    batches: list[tuple[Y, PilotInputs]]


def solve_on_grid(
    solver: Any, terms: PyTree, ts: Array, y0: Y, args: Args, saveat: diffrax.SaveAt, **settings: Any
) -> Any:
    """`diffeqsolve` that steps through `ts`."""
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
def _initial_states(
    solver: diffrax.AbstractSolver,
    make_terms: MakeTerms,
    ts: Float[Array, "2"],
    y0s: Y,
    args: Args,
    inputs: PilotInputs,
) -> PyTree:
    """The initial solver states of a batch of trajectories."""

    def one(y0: Y, inputs: PilotInputs) -> PyTree:
        return solver.init(make_terms(inputs.noise), ts[0], ts[1], y0, inputs.args(args))

    return jax.vmap(one)(y0s, inputs)


@eqx.filter_jit
def _ends(
    method: AbstractMethod,
    solver: diffrax.AbstractSolver,
    make_terms: MakeTerms,
    ts: Float[Array, " times"],
    y0s: Y,
    last: PyTree,
    args: Args,
    inputs: PilotInputs,
) -> tuple[Y, PyTree]:
    """End states and solver states of a batch of trajectories. `last` are the solver states of an earlier segment."""

    def one(y0: Y, last: PyTree, inputs: PilotInputs) -> tuple[Y, PyTree]:
        terms, given = make_terms(inputs.noise), inputs.args(args)
        state = method.resume(solver.init(terms, ts[0], ts[1], y0, given), last)
        saveat = diffrax.SaveAt(t1=True, solver_state=True)
        sol = solve_on_grid(solver, terms, ts, y0, given, saveat, solver_state=state)
        return jtu.tree_map(lambda leaf: leaf[-1], sol.ys), sol.solver_state

    return jax.vmap(one)(y0s, last, inputs)


def segmented_ends(
    method: AbstractMethod,
    solver_of: Callable[[slice], diffrax.AbstractSolver],
    make_terms: MakeTerms,
    ts: Array,
    segment: int,
    ys: Y,
    args: Args,
    inputs: PilotInputs,
) -> Y:
    """End states of solves in segments of `segment` steps each, so that one compiled solve serves all numbers of steps.
    `solver_of` returns the solver for the steps in a slice. The values of earlier steps that the method uses are passed
    from one segment to the next."""
    last = _initial_states(solver_of(slice(0, segment)), make_terms, ts[:2], ys, args, inputs)
    for start in range(0, len(ts) - 1, segment):
        solver = solver_of(slice(start, start + segment))
        ys, last = _ends(method, solver, make_terms, ts[start : start + segment + 1], ys, last, args, inputs)
    return ys


def differences(ends: list[PyTree], others: list[PyTree]) -> Shaped[np.ndarray, "pilots components"]:
    """The differences between two lists of end states, in double precision."""
    found = []
    for end, other in zip(ends, others, strict=True):
        pairs = zip(jtu.tree_leaves(end), jtu.tree_leaves(other), strict=True)
        apart = [(np.asarray(a) - np.asarray(b)).reshape(a.shape[0], -1) for a, b in pairs]
        found.append(np.concatenate(apart, axis=1))
    joined = np.concatenate(found)
    return joined.astype(np.result_type(joined.dtype, float))


def squared_distances(ends: list[PyTree], others: list[PyTree]) -> Float[np.ndarray, " pilots"]:
    """The mean square over the state's components of the distance of each pilot; infinite where a solve diverged."""
    squares = np.mean(np.abs(differences(ends, others)) ** 2, axis=1)
    return np.nan_to_num(squares, nan=np.inf, posinf=np.inf)


def cosine(
    first: Shaped[np.ndarray, "pilots components"], second: Shaped[np.ndarray, "pilots components"]
) -> float:
    """The cosine of the angle between two sets of vectors over all pilots; 0 if one of them vanishes or is not
    finite."""
    length = np.sqrt(np.sum(np.abs(first) ** 2) * np.sum(np.abs(second) ** 2))
    if not 0 < length < np.inf:
        return 0.0
    return float(np.real(np.vdot(first, second)) / length)


def root_mean(squares: Float[np.ndarray, " pilots"]) -> tuple[float, float]:
    """The root of the mean over pilots, and its relative standard error from the differences between pilots."""
    mean = float(np.mean(squares))
    if not 0 < mean < np.inf:
        return float(np.sqrt(mean)), 0.0
    return float(np.sqrt(mean)), float(0.5 * np.std(squares) / np.sqrt(len(squares)) / mean)


def rms_distance(ends: list[PyTree], others: list[PyTree]) -> float:
    """The RMS distance over pilots and components."""
    return root_mean(squared_distances(ends, others))[0]
