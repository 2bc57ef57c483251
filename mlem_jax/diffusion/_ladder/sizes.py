"""How large networks are: parameters and FLOPs, from their shapes alone."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._network import AbstractNetwork
from .._predictor import Guided, NoisePredictor
from .config import Config


def count_flops(network: AbstractNetwork, *, guided: bool = False) -> float:
    """FLOPs of one evaluation on one image, as XLA counts them before it optimises; with `guided`, of both its
    branches. Of the network only the shapes matter, and they are enough."""
    struct = jax.ShapeDtypeStruct((1, *network.shape), jnp.float32)
    level = jax.ShapeDtypeStruct((), jnp.float32)
    label = None if network.classes is None else jax.ShapeDtypeStruct((), jnp.int32)
    params, static = eqx.partition(network, _has_shape)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)

    def call(params: Any, x: Any, noise_level: Any, label: Any) -> Any:
        evaluated = eqx.combine(params, static)
        if guided:
            evaluated = Guided(evaluated, 2.0, network.classes)
        return evaluated(x, noise_level, label)

    return _count(call, shapes, struct, level, label)


def count_predictor_flops(predictor: NoisePredictor, shape: tuple[int, ...], label: PyTree) -> float:
    """FLOPs of one prediction for one image, as XLA counts them before it optimises. Raises what the network does for
    an image of another shape or a label that it does not take."""
    params, static = eqx.partition(predictor, _has_shape)
    # Shapes alone, because arrays may be on an accelerator.
    params, label = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if _has_shape(x) else x, (params, label)
    )
    struct = jax.ShapeDtypeStruct(shape, jnp.float32)

    def call(params: Any, x: Any, s: Any, label: Any) -> Any:
        return eqx.combine(params, static)(x, s, label)

    one = jax.ShapeDtypeStruct((), jnp.float32)
    return _count(call, params, struct, one, label)


def _count(call: Callable[..., Any], *shapes: Any) -> float:
    """FLOPs of a call, as XLA counts them before it optimises. Clients of GPUs and TPUs do not count before they
    compile, so the call is lowered for the CPU, wherever it will run."""
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise RuntimeError(
            "FLOPs are counted by JAX's CPU backend, which JAX_PLATFORMS leaves out here. Add it, as in "
            "JAX_PLATFORMS=cuda,cpu, or leave the variable unset."
        ) from error
    with jax.default_device(cpu):
        analysis = jax.jit(call).lower(*shapes).cost_analysis()
    if analysis is None:
        raise RuntimeError(f"XLA does not count FLOPs for {cpu}.")
    return float(analysis["flops"])


def count_parameters(network: Any) -> int:
    """Number of trained parameters, of a network or of its shapes."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(eqx.filter(network, _has_shape)))


def level_sizes(config: Config) -> list[tuple[str, int, float]]:
    """Kind, parameters and FLOPs per image of each level, from the shapes alone: nothing is drawn."""
    networks = eqx.filter_eval_shape(config.networks)
    return [(type(n).__name__, count_parameters(n), count_flops(n)) for n in networks]


def _has_shape(x: Any) -> bool:
    return eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)
