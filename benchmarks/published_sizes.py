"""Parameters and FLOPs of the published sizes of every family that `load_network` reads, from shapes alone: no weight
is drawn. Prints the table of docs/how-to/pretrained.md.

    python benchmarks/published_sizes.py
"""

import argparse
import dataclasses
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.random as jr

from mlem_jax.diffusion import (
    AbstractPretrained,
    EDM2,
    EDM2Config,
    JiT,
    JiTConfig,
    PretrainedDiT,
    PretrainedDiTConfig,
    UNet2D,
    UNet2DConfig,
)
from mlem_jax.diffusion._ladder import count_flops, count_parameters

# The authors' tables count a multiplication with its addition as one.
DIT = "Peebles & Xie 2023, table 4"
EDM2_LATENTS, EDM2_PIXELS = "Karras et al. 2024, table 2", "Karras et al. 2024, table 3"
JIT_PAPER = "Li & He 2025, table 7"
DDPM = "Ho et al. 2020, appendix B"

_DIT_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
_DIT_PUBLISHED = {
    ("S", 2): (33, 6.06),
    ("S", 4): (33, 1.41),
    ("S", 8): (33, 0.36),
    ("B", 2): (130, 23.01),
    ("B", 4): (130, 5.56),
    ("B", 8): (131, 1.42),
    ("L", 2): (458, 80.71),
    ("L", 4): (458, 19.70),
    ("L", 8): (459, 5.01),
    ("XL", 2): (675, 118.64),
    ("XL", 4): (675, 29.05),
    ("XL", 8): (676, 7.39),
}
_EDM2_PUBLISHED = {
    "XS": (128, 125, 46),
    "S": (192, 280, 102),
    "M": (256, 498, 181),
    "L": (320, 777, 282),
    "XL": (384, 1119, 406),
    "XXL": (448, 1523, 552),
}
_JIT_PUBLISHED = {
    "B": (JiTConfig(), 131, 25),
    "L": (JiTConfig(width=1024, depth=24, heads=16, start=8), 459, 88),
    "H": (JiTConfig(width=1280, depth=32, heads=16, bottleneck=256, start=10), 953, 182),
    "G": (JiTConfig(width=1664, depth=40, heads=16, bottleneck=256, start=10), 2000, 383),
}
_DDPM = UNet2DConfig(sample_size=32, norm_num_groups=32, downsample_padding=0, freq_shift=1)
_CIFAR = dataclasses.replace(
    _DDPM,
    block_out_channels=(128, 256, 256, 256),
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=None,
)
_CELEBA = dataclasses.replace(
    _DDPM,
    sample_size=256,
    block_out_channels=(128, 128, 256, 256, 512, 512),
    down_block_types=(*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
    attention_head_dim=None,
)


@dataclasses.dataclass(frozen=True)
class Size:
    """A published network: its shapes; million parameters and billion multiply-adds as published, if they are."""

    name: str
    network: AbstractPretrained
    parameters: float
    multiply_adds: float | None
    source: str


def published() -> Iterator[Size]:
    """All sizes, family by family, as shapes."""
    key = jr.key(0)

    def shapes(kind, config) -> AbstractPretrained:
        return eqx.filter_eval_shape(lambda: kind.init(config, key=key))

    yield Size("`UNet2DModel`, ddpm-cifar10-32", shapes(UNet2D, _CIFAR), 35.7, None, DDPM)
    yield Size(
        "`UNet2DModel`, ddpm-celebahq-256 (bedroom, cat, church)", shapes(UNet2D, _CELEBA), 114, None, DDPM
    )
    for (name, patch), (parameters, adds) in _DIT_PUBLISHED.items():
        width, depth, heads = _DIT_SIZES[name]
        config = PretrainedDiTConfig(patch=patch, width=width, depth=depth, heads=heads)
        sit = f", SiT-{name}/2" if patch == 2 else ""
        yield Size(f"DiT-{name}/{patch}{sit}", shapes(PretrainedDiT, config), parameters, adds, DIT)
    yield Size("DiT-XL/2 at 512", shapes(PretrainedDiT, PretrainedDiTConfig(size=64)), 675, 524.6, DIT)
    for name, (width, parameters, adds) in _EDM2_PUBLISHED.items():
        config = EDM2Config(channels=4, width=width)
        yield Size(f"EDM2-{name}, latents of 512", shapes(EDM2, config), parameters, adds, EDM2_LATENTS)
    for name in ("S", "M", "L", "XL"):
        width, parameters, adds = _EDM2_PUBLISHED[name]
        network = shapes(EDM2, EDM2Config(width=width))
        yield Size(f"EDM2-{name}, pixels of 64", network, parameters, adds, EDM2_PIXELS)
    for name, (config, parameters, adds) in _JIT_PUBLISHED.items():
        yield Size(f"JiT-{name}/16", shapes(JiT, config), parameters, adds, JIT_PAPER)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| network | parameters (M) | published | GFLOP | multiply-adds (G) | published | source |")
    print("|---|---|---|---|---|---|---|")
    for size in published():
        parameters, flops = count_parameters(size.network) / 1e6, count_flops(size.network) / 1e9
        adds = "" if size.multiply_adds is None else f"{size.multiply_adds:g}"
        print(
            f"| {size.name} | {parameters:.1f} | {size.parameters:g} | {flops:.3g} | {flops / 2:.3g} | {adds} | "
            f"{size.source} |",
            flush=True,
        )
        jax.clear_caches()


if __name__ == "__main__":
    main()
