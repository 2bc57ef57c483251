"""DiT and SiT from their files: the authors' names, or diffusers' `DiTTransformer2DModel`."""

import dataclasses
import functools
import math
import re
from typing import Any

import numpy as np

from .._process import FlowMatching
from .dit import PretrainedDiT, PretrainedDiTConfig
from .family import Found, Source
from .files import Checkpoint
from .network import read_settings
from .schedule import read_scheduler, Training
from .transformer import heads_of


def find_dit(source: Source) -> Found:
    """A DiT: 1,000 steps of Ho et al. 2020, predicted noise."""
    config = _find_config(source)
    return Found("DiT", functools.partial(PretrainedDiT, config), read_scheduler(source.scheduler or {}))


def find_sit(source: Source) -> Found:
    """A SiT: straight lines from noise at time 0 to images at time 1, predicted velocity."""
    training = Training(FlowMatching(noise_at=0), "velocity", "time")
    return Found("SiT", functools.partial(PretrainedDiT, _find_config(source)), training)


def _find_config(source: Source) -> PretrainedDiTConfig:
    if any(name.startswith("transformer_blocks.") for name in source.checkpoint.shapes):
        return _diffusers_config(source)
    given = {**(source.config or {}), **source.settings}
    found = {**_sizes(source.checkpoint), **given}
    if "heads" not in found:
        raise ValueError(
            f"{source.path} does not tell how many heads its attention has, and its width of {found.get('width')} "
            "is not that of a published network. Write heads into a "
            "config.json beside the file, or config={'heads': ...}."
        )
    return read_settings(PretrainedDiTConfig, found, name="DiT", ignored=())


def _sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the shapes of the authors' arrays tell."""
    there = checkpoint.shapes
    needed = (
        "x_embedder.proj.weight",
        "pos_embed",
        "y_embedder.embedding_table.weight",
        "final_layer.linear.weight",
    )
    absent = [name for name in needed if name not in there]
    if absent:
        raise ValueError(f"{checkpoint.path} is not a DiT or SiT: it lacks {', '.join(absent)}.")
    width, channels, patch, _ = there["x_embedder.proj.weight"]
    depth = len({name.split(".")[1] for name in there if name.startswith("blocks.")})
    found = {
        "size": math.isqrt(there["pos_embed"][1]) * patch,
        "channels": channels,
        "patch": patch,
        "width": width,
        "depth": depth,
        "classes": there["y_embedder.embedding_table.weight"][0] - 1,
        "learned_variance": there["final_layer.linear.weight"][0] == 2 * channels * patch**2,
    }
    heads = heads_of(width)
    return found if heads is None else {**found, "heads": heads}


# diffusers' names inside a block, in regular expressions, and the authors'.
_NAMES = (
    (r"pos_embed\.proj\.", "x_embedder.proj."),
    (r"transformer_blocks\.(\d+)\.norm1\.emb\.timestep_embedder\.linear_1\.", r"blocks.\1.t_embedder.mlp.0."),
    (r"transformer_blocks\.(\d+)\.norm1\.emb\.timestep_embedder\.linear_2\.", r"blocks.\1.t_embedder.mlp.2."),
    (r"transformer_blocks\.(\d+)\.norm1\.emb\.class_embedder\.", r"blocks.\1.y_embedder."),
    (r"transformer_blocks\.(\d+)\.norm1\.linear\.", r"blocks.\1.adaLN_modulation.1."),
    (r"transformer_blocks\.(\d+)\.attn1\.to_out\.0\.", r"blocks.\1.attn.proj."),
    (r"transformer_blocks\.(\d+)\.attn1\.to_(q|k|v)\.", r"blocks.\1.attn.\2."),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.", r"blocks.\1.mlp.fc1."),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2\.", r"blocks.\1.mlp.fc2."),
    (r"proj_out_1\.", "final_layer.adaLN_modulation.1."),
    (r"proj_out_2\.", "final_layer.linear."),
)


@dataclasses.dataclass(frozen=True)
class _DiffusersConfig:
    """The entries of a `DiTTransformer2DModel`'s `config.json` that decide what it computes."""

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = None
    num_layers: int = 28
    attention_bias: bool = True
    sample_size: int = 32
    patch_size: int = 2
    activation_fn: str = "gelu-approximate"
    num_embeds_ada_norm: int = 1000
    norm_type: str = "ada_norm_zero"
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-5

    def __post_init__(self):
        only = {
            "attention_bias": True,
            "activation_fn": "gelu-approximate",
            "norm_type": "ada_norm_zero",
            "norm_elementwise_affine": False,
        }
        for name, value in only.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"The configuration has {name} = {getattr(self, name)!r}; supported is {value!r}."
                )


def _diffusers_config(source: Source) -> PretrainedDiTConfig:
    name = "DiTTransformer2DModel"
    ignored = ("dropout", "norm_num_groups", "upcast_attention")
    table = read_settings(_DiffusersConfig, source.require_config(name), name=name, ignored=ignored)
    checkpoint = source.checkpoint
    renamed: dict[str, str | None] = {}
    for stored in checkpoint.shapes:
        for pattern, ours in _NAMES:
            if re.match(pattern, stored):
                renamed[stored] = re.sub(f"^{pattern}", ours, stored)
    checkpoint.rename(renamed)
    return PretrainedDiTConfig(
        size=table.sample_size,
        channels=table.in_channels,
        patch=table.patch_size,
        width=table.num_attention_heads * table.attention_head_dim,
        depth=table.num_layers,
        heads=table.num_attention_heads,
        classes=table.num_embeds_ada_norm,
        learned_variance=(table.out_channels or table.in_channels) == 2 * table.in_channels,
        frequency_shift=1,
        second_epsilon=table.norm_eps,
        own_embeddings=not _share_embeddings(checkpoint),
    )


def _share_embeddings(checkpoint: Checkpoint) -> bool:
    """diffusers keeps the embeddings once for every block. Where all are equal, as in a converted checkpoint, one
    is kept and the others are forgotten."""
    names = [name for name in checkpoint.shapes if re.match(r"blocks\.\d+\.[ty]_embedder\.", name)]
    firsts = {name.split(".", 2)[2]: checkpoint.read(name) for name in names if name.startswith("blocks.0.")}
    for name in names:
        first = firsts.get(name.split(".", 2)[2])
        if first is None or not np.array_equal(checkpoint.read(name), first):
            return False
    checkpoint.rename(
        {name: name.split(".", 2)[2] if name.startswith("blocks.0.") else None for name in names}
    )
    return True
