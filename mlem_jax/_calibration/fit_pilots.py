"""The pilots on which coefficients are fitted: their reference trajectories, and batched evaluations of the levels."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree

from .._custom_types import Args, TimeVariable, Y
from .._solver import LinearMultistep, MultistepCoefficients
from .._term import find_multilevel_term, MakeTerms, MultilevelTerm, with_levels

# The reference is solved with two drifts: of second order, and stable for steps of half the length of Euler's.
_REFERENCE_DRIFTS = 2


class _Given(eqx.Module):
    """The inputs of all evaluations. `labels`, if there are any, replace `args`."""

    make_terms: MakeTerms
    args: Args
    noise: Key[Array, " pilots"]
    labels: PyTree
    example: Y

    def batch(self, chosen: slice) -> "_Given":
        """The inputs of some of the pilots."""
        noise, labels = jtu.tree_map(lambda x: x[chosen], (self.noise, self.labels))
        return _Given(self.make_terms, self.args, noise, labels, self.example)

    def each(self, function: Callable[..., Any], ys: Float[Array, "batch size"]) -> Any:
        """`function(terms, args, y)` for each pilot of a batch, whose states are flat."""
        _, unravel = ravel_pytree(self.example)

        def one(y: Array, noise: Array, label: PyTree) -> Any:
            given = self.args if label is None else label
            return function(self.make_terms(noise), given, unravel(y))

        return jax.vmap(one)(ys, self.noise, self.labels)


@eqx.filter_jit
def _drift(given: _Given, level: int, t: Array, ys: Array) -> Array:
    def one(terms: PyTree, args: Args, y: Y) -> Array:
        _, term = find_multilevel_term(terms)
        return ravel_pytree(MultilevelTerm(term.levels[level]).vf(t, y, args))[0]

    return given.each(one, ys)


@eqx.filter_jit
def _pullback(given: _Given, level: int, t: Array, ys: Array, cotangents: Array) -> Array:
    _, unravel = ravel_pytree(given.example)

    def one(y: Array, noise: Array, label: PyTree, cotangents: Array) -> Array:
        args = given.args if label is None else label
        _, term = find_multilevel_term(given.make_terms(noise))
        drift = MultilevelTerm(term.levels[level])
        _, pull = jax.vjp(lambda y: ravel_pytree(drift.vf(t, unravel(y), args))[0], y)
        return jax.vmap(lambda cotangent: pull(cotangent)[0])(cotangents)

    return jax.vmap(one, in_axes=(0, 0, 0, 1), out_axes=1)(ys, given.noise, given.labels, cotangents)


@eqx.filter_jit
def _others(given: _Given, t0: Array, t1: Array, ys: Array) -> Array:
    """The increment of the terms beside the multilevel one in a step, that is, of the noise."""
    backward = t1 < t0
    sign = jnp.where(backward, -1, 1)

    def one(terms: PyTree, args: Args, y: Y) -> Array:
        place, _ = find_multilevel_term(terms)
        total = jnp.zeros_like(ravel_pytree(y)[0])
        for i, term in enumerate(terms.terms):
            if i != place:
                # As in diffrax, controls are only evaluated on intervals in forward time.
                control = term.contr(jnp.minimum(t0, t1), jnp.maximum(t0, t1))
                control = jtu.tree_map(lambda c: sign.astype(c.dtype) * c, control)
                total = total + ravel_pytree(term.vf_prod(t0, y, args, control))[0]
        return total

    return given.each(one, ys)


@eqx.filter_jit
def _path(given: _Given, ts: Array, keep: Array, weights: MultistepCoefficients, ys: Array) -> Array:
    """The finest level's trajectories at some of the times, `(batch, times, size)`."""

    def one(terms: PyTree, args: Args, y: Y) -> Array:
        _, term = find_multilevel_term(terms)
        sol = diffrax.diffeqsolve(
            with_levels(terms, (len(term.levels) - 1,)),
            LinearMultistep(weights, check_finite=False),
            ts[0],
            ts[-1],
            None,
            y,
            args,
            stepsize_controller=diffrax.StepTo(ts),
            saveat=diffrax.SaveAt(ts=keep),
            max_steps=ts.shape[0] - 1,
        )
        return jax.vmap(lambda y: ravel_pytree(y)[0])(sol.ys)

    return given.each(one, ys)


def _even_batches(count: int, size: int) -> list[slice]:
    """Batches of equal sizes (plus or minus one), as near to the given one as possible. A small batch at the end would
    take more time per pilot."""
    edges = np.linspace(0, count, max(1, round(count / size)) + 1).round().astype(int)
    return [slice(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]


class FitPilots:
    """`P` pilot trajectories with states of `D` components.

    - `ts`: the times among which steps are chosen, `(M + 1,)`.
    - `path`: the reference trajectories of the finest level at these times, `(M + 1, P, D)`.
    - `costs`: cost of one evaluation of each level, in evaluations of the finest one, `(K,)`.
    """

    def __init__(
        self,
        make_terms: MakeTerms,
        fine: Float[np.ndarray, " fine_times"],
        stride: int,
        y0s: Y,
        *,
        args: Args,
        labels: PyTree,
        key: PRNGKeyArray,
        costs: Float[np.ndarray, " levels"],
        time_variable: TimeVariable,
        batch_size: int,
    ):
        example = jtu.tree_map(lambda x: x[0], y0s)
        count = jtu.tree_leaves(y0s)[0].shape[0]
        self._given = _Given(make_terms, args, jr.split(key, count), labels, example)
        self._batch_size = batch_size
        self._batches = _even_batches(count, batch_size)
        first = make_terms(self._given.noise[0])
        place, _ = find_multilevel_term(first)
        self.noisy = place is not None and len(first.terms) > 1
        self.costs = costs
        self.time_variable: TimeVariable = time_variable
        self.ts = fine[::stride]
        weights = MultistepCoefficients.adams_bashforth(
            fine, drifts=_REFERENCE_DRIFTS, time_variable=time_variable
        )
        starts = jax.vmap(lambda y: ravel_pytree(y)[0])(y0s)
        times, keep = (jnp.asarray(t, jnp.result_type(float)) for t in (fine, self.ts))
        found = []
        for batch in self._batches:
            found.append(np.asarray(_path(self._given.batch(batch), times, keep, weights, starts[batch])))
        self.path = np.moveaxis(np.concatenate(found), 0, 1)
        if not np.all(np.isfinite(self.path)):
            raise ValueError(
                f"The finest level's trajectory with {len(fine) - 1} steps is not finite. Give a finer grid ts, or "
                "time_variable='time' if it is 'log'."
            )

    @property
    def count(self) -> int:
        """Number of pilots, `P`."""
        return self.path.shape[1]

    def part(self, count: int) -> "FitPilots":
        """The first pilots only; nothing is computed again."""
        part = object.__new__(FitPilots)
        part.__dict__.update(self.__dict__)
        chosen = slice(0, count)
        part.path, part._given = self.path[:, chosen], self._given.batch(chosen)
        part._batches = _even_batches(count, self._batch_size)
        return part

    def drift(self, level: int, place: int, ys: Float[np.ndarray, "pilots size"]) -> Array:
        """The drift of a level at one of the times."""
        t = jnp.asarray(self.ts[place], jnp.result_type(float))
        return self._batched(lambda given, y: _drift(given, level, t, y), ys)

    def pullback(
        self,
        level: int,
        place: int,
        ys: Float[np.ndarray, "pilots size"],
        cotangents: Float[np.ndarray, "directions pilots size"],
    ) -> Float[np.ndarray, "directions pilots size"]:
        """Cotangents of the states, from cotangents of a level's drift at one of the times."""
        t = jnp.asarray(self.ts[place], jnp.result_type(float))
        states, given = jnp.asarray(ys), jnp.asarray(cotangents, ys.dtype)
        found = [_pullback(self._given.batch(b), level, t, states[b], given[:, b]) for b in self._batches]
        return np.concatenate([np.asarray(part) for part in found], axis=1)

    def others(self, start: int, stop: int, ys: Float[np.ndarray, "pilots size"]) -> Array | None:
        """The increment of the terms beside the multilevel one between two of the times; `None` for an ODE."""
        if not self.noisy:
            return None
        t0, t1 = (jnp.asarray(self.ts[i], jnp.result_type(float)) for i in (start, stop))
        return self._batched(lambda given, y: _others(given, t0, t1, y), ys)

    def _batched(self, call: Callable[[_Given, Array], Array], ys: np.ndarray) -> Array:
        states = jnp.asarray(ys)
        return jnp.concatenate([call(self._given.batch(b), states[b]) for b in self._batches])
