"""Checkpoints on disk, made from fixtures, and how far a network is from its reference."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from pretrained_weights import load_case, weights
from safetensors.numpy import save_file

from mlem_jax.diffusion import UNet2D, UNet2DConfig
from mlem_jax.diffusion._pretrained.parameters import required_shapes

# Of issue: relative to the norm of the reference's array.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


def write_folder(folder: Path, name: str, **changed: object) -> Path:
    """A fixture's network as diffusers' `save_pretrained` would write it, with entries of its configuration
    changed."""
    about, _ = load_case(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**about["config"], **changed}))
    save_file(weights(about["shapes"], about["seed"]), folder / "diffusion_pytorch_model.safetensors")
    return folder


def last(x: np.ndarray) -> jax.Array:
    """Channels first to channels last."""
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def distance(found: jax.Array, reference: np.ndarray) -> float:
    """Relative, in the Euclidean norm, of channels-last to channels-first."""
    expected = last(reference)
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


def deviations(network, arrays: dict[str, np.ndarray]) -> tuple[float, float]:
    """Of the output and of the gradient from a fixture's."""
    labels = jnp.asarray(arrays["labels"], jnp.int32) if "labels" in arrays else None
    times = jnp.asarray(arrays["times"])

    @jax.jit
    def run(x, probe):
        out, pull_back = jax.vjp(lambda x: network(x, times, labels), x)
        return out, pull_back(probe)[0]

    out, gradient = run(last(arrays["x"]), last(arrays["probe"]))
    return distance(out, arrays["out"]), distance(gradient, arrays["gradient"])


def write_unet(folder: Path, width: int, *, seed: int = 0, side: int = 4, **changed: object) -> Path:
    """A `UNet2DModel` of one block and random weights, as diffusers' `save_pretrained` would write it."""
    config = {
        "_class_name": "UNet2DModel",
        "sample_size": side,
        "block_out_channels": [width],
        "norm_num_groups": 2,
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "add_attention": False,
        **changed,
    }
    shapes = required_shapes(functools.partial(UNet2D, UNet2DConfig.read(config)))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        weights({name: list(shape) for name, shape in shapes.items()}, seed),
        folder / "diffusion_pytorch_model.safetensors",
    )
    return folder
