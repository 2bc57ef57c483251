"""Batches of samples: how they are divided, and drawn on a mesh of devices."""

from functools import partial

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from .._mesh import EACH, EVERYWHERE, spread
from .failure import explain_failure
from .given import Given
from .sampler import Sampler

# First and one past the last index.
Batch = tuple[int, int]


def split(n: int, size: int, group: int) -> list[Batch]:
    """First and one past the last index of each batch; none crosses the border of a group."""
    return [
        (start, min(start + size, begin + group, n))
        for begin in range(0, n, group)
        for start in range(begin, min(begin + group, n), size)
    ]


def missing(job: Batch, there: Bool[np.ndarray, " n"]) -> list[Batch]:
    """The parts of a batch that have not been drawn yet."""
    start, stop = job
    edges = np.flatnonzero(np.diff(np.concatenate([[1], there[start:stop], [1]]).astype(int)))
    return [(int(a) + start, int(b) + start) for a, b in edges.reshape(-1, 2)]


@eqx.filter_jit
def draw(
    mesh: Mesh, sampler: Sampler, indices: Int[Array, " n"], shown: Bool[Array, " n"], given: Given
) -> tuple[Float[Array, "n ..."], Float[Array, "n saved ..."]]:
    """The samples of these indices, and their trajectories. Steps are reported of those that are `shown`.

    The indices are sharded over the mesh. Those on one device belong to one coin group, so that a level is evaluated
    there only in steps in which it fires for that group. No device waits for another.
    """
    arrays, rest = eqx.partition(sampler, eqx.is_array)

    def on_one_device(
        arrays: Sampler, indices: Int[Array, " m"], shown: Bool[Array, " m"], given: Given
    ) -> tuple[Float[Array, "m ..."], Float[Array, "m saved ..."]]:
        sampler = eqx.combine(arrays, rest)
        solver = sampler.group_solver(indices[0])
        states = jax.vmap(partial(_states, sampler, solver))(indices, shown, given)
        return states[:, -1], states[:, :-1]

    # The check would ask every solver loop for annotations; nothing here is exchanged between devices.
    mapped = jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(EVERYWHERE, EACH, EACH, EACH),
        out_specs=EACH,
        check_vma=False,
    )
    return mapped(arrays, indices, shown, given)


def _states(
    sampler: Sampler,
    solver: diffrax.AbstractSolver,
    index: Int[Array, ""],
    shown: Bool[Array, ""],
    given: Given,
) -> Float[Array, "saved ..."]:
    """The states of one sample that are kept, the last one at the end."""
    kept = diffrax.SubSaveAt(t1=True, ts=sampler.save_at)
    if sampler.report is None:
        return sampler.solve(solver, index, given, diffrax.SaveAt(subs=kept))
    reported = sampler.report.saveat(sampler.ts, index, shown)
    return sampler.solve(solver, index, given, diffrax.SaveAt(subs=[kept, reported]))[0]


def draw_batches(
    mesh: Mesh,
    sampler: Sampler,
    jobs: list[Batch],
    size: int,
    given: Given,
    levels: tuple[int, ...],
) -> list[dict[str, np.ndarray]]:
    """The arrays of one batch per device. Where a batch is short, or there are fewer than devices, its last sample
    is drawn again to keep the shape."""
    padded = jobs + [jobs[-1]] * (mesh.size - len(jobs))
    indices = np.concatenate([np.minimum(np.arange(a, a + size), b - 1) for a, b in padded]).astype(np.int32)
    owned = np.concatenate(
        [np.arange(a, a + size) < b for a, b in jobs] + [np.zeros(size * (len(padded) - len(jobs)), bool)]
    )
    images, trajectories = draw(
        mesh,
        sampler,
        spread(mesh, jnp.asarray(indices)),
        spread(mesh, jnp.asarray(owned)),
        spread(mesh, given.at(indices)),
    )
    images, trajectories = np.asarray(images), np.asarray(trajectories)
    if sampler.report is not None:
        sampler.report.finish()
    finite = np.isfinite(images).all(axis=tuple(range(1, images.ndim)))
    if not finite.all():
        index = int(indices[~finite].min())
        on_one = jax.device_put(eqx.filter(sampler, eqx.is_array), mesh.devices.flat[0])
        alone = eqx.combine(on_one, sampler)
        raise FloatingPointError(explain_failure(alone, index, given.at(index), levels))
    arrays = []
    for device, (start, stop) in enumerate(jobs):
        rows = slice(device * size, device * size + stop - start)
        arrays.append({"images": images[rows]})
        if sampler.save_at is not None:
            arrays[-1]["trajectories"] = trajectories[rows]
    return arrays
