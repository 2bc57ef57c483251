"""A one-dimensional mesh of devices, over which samples or the images of a batch are sharded."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

_AXIS = "samples"
EACH = PartitionSpec(_AXIS)
EVERYWHERE = PartitionSpec()


def make_mesh(devices: tuple[Any, ...]) -> Mesh:
    """One axis of devices, along which samples are sharded."""
    return Mesh(np.array(devices), (_AXIS,))


def training_mesh(batch_size: int) -> Mesh:
    """As many of the devices as divide a batch evenly."""
    devices = jax.devices()
    if jax.process_count() > 1:
        raise ValueError(
            f"Training runs in one process, on all its devices, and was started in {jax.process_count()}. Start it "
            "without jax.distributed.initialize; sampling may use many processes."
        )
    count = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
    return make_mesh(tuple(devices[:count]))


def put_everywhere(mesh: Mesh, tree: PyTree) -> PyTree:
    """The tree with its arrays on every device, once instead of in every batch."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, NamedSharding(mesh, EVERYWHERE)), rest)


def keep_everywhere(mesh: Mesh, tree: PyTree) -> PyTree:
    """Inside a compiled function: a tree of arrays that every device is to hold whole."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, EVERYWHERE))


def spread(mesh: Mesh, tree: PyTree) -> PyTree:
    """Arrays with a leading axis of samples, each device holding its own part."""
    return jax.device_put(tree, NamedSharding(mesh, EACH))


def take_home(tree: PyTree) -> PyTree:
    """The tree with its arrays on the default device, tied to none, whatever devices they were on."""
    return jax.tree.map(lambda x: jax.numpy.asarray(np.asarray(x)) if eqx.is_array(x) else x, tree)
