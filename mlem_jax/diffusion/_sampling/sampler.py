"""One sample as a function of its index, and batches of them on a mesh of devices.

Files and processes are `_sample.py`'s.
"""

from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..._brownian import GridBrownianPath
from ..._term import find_multilevel_term
from .._mesh import EACH, EVERYWHERE, spread
from .._predictor.adapter import NoisePredictor
from .._predictor.drift import sampling_terms

# First and one past the last index.
Batch = tuple[int, int]


class Sampler(eqx.Module):
    """All that a sample depends on, except for its index and label.

    - `predictors`: those of the plan's levels, with `costs` of one evaluation each.
    - `solver`: the plan's, with the key from which the keys of the coin groups are made.
    - `ts`: the steps' times; `save_at`: those at which trajectories are saved, or `None`.
    - `noise_key`, `path_key`: for the start and the Brownian path, folded with the sample's index.
    - `args`: what all samples hand to the levels; not used where there are labels.
    - `coin_group`: how many share their coins; `None` for coins that are not random.
    """

    predictors: tuple[NoisePredictor, ...]
    solver: diffrax.AbstractSolver
    ts: Float[Array, " times"]
    save_at: Float[Array, " saved"] | None
    noise_key: PRNGKeyArray
    path_key: PRNGKeyArray
    args: PyTree
    costs: tuple[float, ...] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    stochasticity: float = eqx.field(static=True)
    coin_group: int | None = eqx.field(static=True)

    def start(self, index: Int[Array, ""]) -> Float[Array, "..."]:
        """The noise from which a sample starts."""
        return self.ts[0] * jr.normal(jr.fold_in(self.noise_key, index), self.shape, self.ts.dtype)

    def terms(self, index: Int[Array, ""]) -> Any:
        """The equation of a sample, with its own Brownian path."""
        path = None
        if self.stochasticity:
            path = GridBrownianPath(self.ts, self.shape, key=jr.fold_in(self.path_key, index))
        return sampling_terms(
            *self.predictors, stochasticity=self.stochasticity, brownian_motion=path, costs=self.costs
        )

    def group_solver(self, index: Int[Array, ""]) -> diffrax.AbstractSolver:
        """The solver with the coins of the group to which a sample belongs."""
        solver: Any = self.solver
        if self.coin_group is None:
            return solver
        return eqx.tree_at(lambda s: s.key, solver, jr.fold_in(solver.key, index // self.coin_group))

    def solve(
        self,
        solver: diffrax.AbstractSolver,
        index: Int[Array, ""],
        label: PyTree,
        saveat: diffrax.SaveAt,
    ) -> Float[Array, "saved ..."]:
        """One sample's states where `saveat` asks for them."""
        solution = diffrax.diffeqsolve(
            self.terms(index),
            solver,
            self.ts[0],
            self.ts[-1],
            None,
            self.start(index),
            self.args if label is None else label,
            saveat=saveat,
            stepsize_controller=diffrax.StepTo(self.ts),
            max_steps=len(self.ts) - 1,
        )
        assert solution.ys is not None
        return solution.ys


@eqx.filter_jit
def draw(
    mesh: Mesh, sampler: Sampler, indices: Int[Array, " n"], labels: PyTree
) -> tuple[Float[Array, "n ..."], Float[Array, "n saved ..."]]:
    """The samples of these indices, and their trajectories.

    The indices are spread over the mesh; those on one device belong to one coin group, so that a level there runs
    only where its coin comes up. No device ever waits for another.
    """
    arrays, rest = eqx.partition(sampler, eqx.is_array)
    saveat = diffrax.SaveAt(t1=True, ts=sampler.save_at)

    def on_one_device(
        arrays: Sampler, indices: Int[Array, " m"], labels: PyTree
    ) -> tuple[Float[Array, "m ..."], Float[Array, "m saved ..."]]:
        sampler = eqx.combine(arrays, rest)
        solver = sampler.group_solver(indices[0])
        states = jax.vmap(partial(sampler.solve, solver, saveat=saveat))(indices, labels)
        return states[:, -1], states[:, :-1]

    # The check would ask every solver loop for annotations; nothing here is exchanged between devices.
    mapped = jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(EVERYWHERE, EACH, EACH),
        out_specs=EACH,
        check_vma=False,
    )
    return mapped(arrays, indices, labels)


def explain_failure(sampler: Sampler, index: int, label: PyTree, levels: tuple[int, ...]) -> str:
    """Which level, in which step and at which time, made this sample something that is not finite."""
    place = jnp.asarray(index)
    saveat = diffrax.SaveAt(t0=True, steps=True)
    solve = eqx.filter_jit(lambda sampler: sampler.solve(sampler.group_solver(place), place, label, saveat))
    states = np.asarray(solve(sampler))
    bad = np.nonzero(~np.isfinite(states).all(axis=tuple(range(1, states.ndim))))[0]
    if not len(bad):
        return (
            f"Sample {index} is not finite in its batch, yet is finite when drawn alone: the last digits decide "
            "where it overflows. Choose a plan with more steps."
        )
    step = int(bad[0]) - 1
    s, before = sampler.ts[step], jnp.asarray(states[step])
    _, term = find_multilevel_term(sampler.terms(place))
    args = sampler.args if label is None else label
    guilty = [
        str(level + 1)
        for level, drift in zip(levels, term.levels, strict=True)
        if not np.isfinite(np.asarray(drift(s, before, args), np.float64)).all()
    ]
    where = f"in step {step + 1} of {len(sampler.ts) - 1}, at s = {float(s):.4g}"
    if guilty:
        return (
            f"Level {' and level '.join(guilty)} returned a value that is not finite, for sample {index} {where}. "
            f"The largest entry of its input there is {float(jnp.abs(before).max()):.4g}."
        )
    return (
        f"Sample {index} overflowed {where}, although every level's value there is finite. Choose a plan with "
        "more steps."
    )


def split(n: int, size: int, group: int) -> list[Batch]:
    """First and one past the last index of each batch; none crosses the border of a group."""
    return [
        (start, min(start + size, begin + group, n))
        for begin in range(0, n, group)
        for start in range(begin, min(begin + group, n), size)
    ]


def missing(job: Batch, there: Bool[np.ndarray, " n"]) -> list[Batch]:
    """The parts of a batch that are not there."""
    start, stop = job
    edges = np.flatnonzero(np.diff(np.concatenate([[1], there[start:stop], [1]]).astype(int)))
    return [(int(a) + start, int(b) + start) for a, b in edges.reshape(-1, 2)]


def draw_batches(
    mesh: Mesh,
    sampler: Sampler,
    jobs: list[Batch],
    size: int,
    labels: PyTree,
    levels: tuple[int, ...],
) -> list[dict[str, np.ndarray]]:
    """The arrays of one batch per device. Where a batch is short, or there are fewer than devices, its last sample
    is drawn again to keep the shape."""
    padded = jobs + [jobs[-1]] * (mesh.size - len(jobs))
    indices = np.concatenate([np.minimum(np.arange(a, a + size), b - 1) for a, b in padded]).astype(np.int32)
    chosen = jax.tree.map(lambda leaf: leaf[indices], labels)
    images, trajectories = draw(mesh, sampler, spread(mesh, jnp.asarray(indices)), spread(mesh, chosen))
    images, trajectories = np.asarray(images), np.asarray(trajectories)
    finite = np.isfinite(images).all(axis=tuple(range(1, images.ndim)))
    if not finite.all():
        index = int(indices[~finite].min())
        label = jax.tree.map(lambda leaf: leaf[index], labels)
        on_one = jax.device_put(eqx.filter(sampler, eqx.is_array), mesh.devices.flat[0])
        alone = eqx.combine(on_one, sampler)
        raise FloatingPointError(explain_failure(alone, index, label, levels))
    arrays = []
    for device, (start, stop) in enumerate(jobs):
        rows = slice(device * size, device * size + stop - start)
        arrays.append({"images": images[rows]})
        if sampler.save_at is not None:
            arrays[-1]["trajectories"] = trajectories[rows]
    return arrays
