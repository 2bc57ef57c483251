"""Measuring levels along real trajectories, and the probabilities that follow for a budget."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from ._budget import scale_to_budget
from ._probabilities import TabulatedProbabilities
from ._term import find_multilevel_term, MultilevelTerm
from ._types import Args, Y


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """What [`mlem_jax.calibrate`][] measured; one row per time, one column per level, cheapest first.

    - `ts`: the times, `(N,)`, in the order of the solve.
    - `increment`: root mean square, over pilot trajectories and components of the state, of
        `D_k = f^k - f^{k-1}`, `(N, K)`.
    - `effect`: the same of `J D_k`, with `J` the derivative of the end state with respect to the state
        after a step at that time: by how much a kick `D_k` moves the end state, `(N, K)`.
    - `costs`: cost of one evaluation of each level, in evaluations of the finest one, `(K,)`.
    """

    ts: Float[np.ndarray, " times"]
    increment: Float[np.ndarray, "times levels"]
    effect: Float[np.ndarray, "times levels"]
    costs: Float[np.ndarray, " levels"]

    def probabilities(self, ts: ArrayLike, *, budget: float) -> TabulatedProbabilities:
        """Probabilities for a solve through `ts` that costs `budget` finest-level evaluations.

        `p_k(t_n) = min(1, scale * h_n effect_k(t_n) / sqrt(C_k + C_{k-1}))`, and 1 for the cheapest level.
        Looking at `D_k` takes an evaluation of both its levels. This is the optimum for independent coins
        (variance `h^2 / p` per step); evenly spaced coins did well with it too in
        a small sweep on the shipped networks.

        Raises `ValueError` if the budget cannot be met (see [`mlem_jax.scale_to_budget`][]).
        """
        ts = np.asarray(ts, float)
        order = np.argsort(self.ts)
        pair = self.costs + np.concatenate([[0.0], self.costs[:-1]])
        columns = [np.interp(ts[:-1], self.ts[order], column[order]) for column in self.effect.T]
        shape = np.abs(np.diff(ts))[:, None] * np.stack(columns, axis=1) / np.sqrt(pair)
        # A level that changes nothing at some time is still looked at now and then.
        shape = np.maximum(shape, 1e-6 * shape.max(axis=0))

        def family(scale: float) -> TabulatedProbabilities:
            p = np.minimum(1.0, scale * shape)
            p[:, 0] = 1.0
            return TabulatedProbabilities(ts[:-1], p)

        return scale_to_budget(family, list(self.costs), ts, budget)

    def save(self, path: str | Path) -> None:
        """Writes one `.npz` file, in one step."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp.npz")
        np.savez(temporary, **dataclasses.asdict(self))
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Reads what `save` wrote. Raises `ValueError` for another file."""
        with np.load(path) as file:
            names = {field.name for field in dataclasses.fields(cls)}
            if set(file.files) != names:
                raise ValueError(f"{path} is not a calibration: it holds {sorted(file.files)}.")
            return cls(**{name: file[name] for name in names})


def calibrate(
    terms: PyTree,
    ts: ArrayLike,
    y0s: Y,
    args: Args = None,
    *,
    key: PRNGKeyArray,
    costs: Sequence[float] | None = None,
    probes: int = 4,
    sensitivity_level: int = -2,
) -> Calibration:
    """Measures how large the increments of the levels are along trajectories of the finest level, and
    how much they matter for the end state.

    The end state's derivative is that of the flow of one cheaper level along the finest level's
    trajectory, applied to random directions in one sweep backwards: an approximation, as good as that
    level's derivative.

    **Arguments:**

    - `terms`: as for [`mlem_jax.MLEM`][]. All pilot trajectories see the same noise.
    - `ts`: times of the pilot's Euler steps, `(N + 1,)`; the finer, the closer to the exact trajectories.
    - `y0s`: initial states of the pilot trajectories, with a leading axis.
    - `key`: for the random directions; keyword-only.
    - `costs`: cost of one evaluation of each level, in any unit; by default those of the term.
    - `probes`: random directions per trajectory.
    - `sensitivity_level`: index of the level whose derivative is used; the second finest by default.

    Costs `N` times about two finest evaluations on all pilot trajectories.

    Raises `ValueError` for terms without a MultilevelTerm, with fewer than two levels, or without costs.
    """
    place, term = find_multilevel_term(terms)
    num_levels = len(term.levels)
    if num_levels < 2:
        raise ValueError("There is nothing to calibrate with one level; use diffrax.Euler().")
    costs = term.costs if costs is None else tuple(costs)
    if costs is None or len(costs) != num_levels:
        raise ValueError(
            f"calibrate needs one cost for each of the {num_levels} levels and has {costs}. Write "
            "MultilevelTerm(..., costs=(...)) or calibrate(..., costs=(...)), in any unit."
        )
    ts = jnp.asarray(ts, jnp.result_type(float))
    cheap = MultilevelTerm(term.levels[sensitivity_level])
    if place is None:
        cheap_terms: Any = cheap
    else:
        cheap_terms = diffrax.MultiTerm(*(cheap if i == place else x for i, x in enumerate(terms.terms)))
    increment, effect = _sweep(terms, term, cheap_terms, ts, y0s, args, probes, key)
    relative = np.asarray(costs) / costs[-1]
    return Calibration(np.asarray(ts[:-1]), np.asarray(increment), np.asarray(effect), relative)


@eqx.filter_jit
def _sweep(
    terms: PyTree,
    term: MultilevelTerm,
    cheap_terms: PyTree,
    ts: Float[Array, " times"],
    y0s: Y,
    args: Args,
    probes: int,
    key: PRNGKeyArray,
) -> tuple[Float[Array, "steps levels"], Float[Array, "steps levels"]]:
    """Root mean squares of `D_k` and of `J D_k` at the start of every step."""

    def trajectory(y0: Y) -> Y:
        return diffrax.diffeqsolve(
            terms,
            diffrax.Euler(),
            ts[0],
            ts[-1],
            None,
            y0,
            args,
            stepsize_controller=diffrax.StepTo(ts),
            saveat=diffrax.SaveAt(t0=True, steps=True),
            max_steps=ts.shape[0] - 1,
        ).ys

    paths = jax.vmap(trajectory)(y0s)
    components = sum(leaf[0].size for leaf in jtu.tree_leaves(y0s))

    def one_path(path: Y, key: PRNGKeyArray) -> tuple[Array, Array]:
        def back(adjoints: Y, step: Array) -> tuple[Y, tuple[Array, Array]]:
            y = jtu.tree_map(lambda leaf: leaf[step], path)
            drifts = [level(ts[step], y, args) for level in term.levels]
            increments = [drifts[0]]
            for fine, coarse in zip(drifts[1:], drifts, strict=False):
                increments.append(jtu.tree_map(jnp.subtract, fine, coarse))

            def dot(a: Y, b: Y) -> Array:
                products = jtu.tree_map(lambda u, v: jnp.sum(u * v), a, b)
                return jnp.sum(jnp.stack(jtu.tree_leaves(products)))

            squares = jnp.stack([dot(d, d) for d in increments])
            effects = jnp.stack(
                [jnp.mean(jax.vmap(lambda a, d=d: dot(a, d) ** 2)(adjoints)) for d in increments]
            )

            def advance(y: Y) -> Y:
                return jtu.tree_map(jnp.add, y, _increment(cheap_terms, ts[step], ts[step + 1], y, args))

            _, pull = jax.vjp(advance, y)
            (adjoints,) = jax.vmap(pull)(adjoints)
            return adjoints, (squares, effects)

        leaves, structure = jtu.tree_flatten(path)
        directions = [
            jr.rademacher(jr.fold_in(key, i), (probes, *leaf.shape[1:]), leaf.dtype)
            for i, leaf in enumerate(leaves)
        ]
        steps = jnp.arange(ts.shape[0] - 1)
        _, out = jax.lax.scan(back, jtu.tree_unflatten(structure, directions), steps, reverse=True)
        return out

    pilots = jtu.tree_leaves(y0s)[0].shape[0]
    squares, effects = jax.vmap(one_path)(paths, jr.split(key, pilots))
    return (
        jnp.sqrt(jnp.mean(squares, axis=0) / components),
        jnp.sqrt(jnp.mean(effects, axis=0) / components),
    )


def _increment(terms: PyTree, t0: Array, t1: Array, y: Y, args: Args) -> Y:
    """One Euler increment from `t0` to `t1`, forward or backward in time (a control is only asked for
    intervals in forward time, as diffrax does it)."""
    backward = t1 < t0
    control = terms.contr(jnp.minimum(t0, t1), jnp.maximum(t0, t1))
    control = jtu.tree_map(lambda c: jnp.where(backward, -c, c), control)
    return terms.vf_prod(t0, y, args, control)
