"""The configuration of diffusers' `UNet2DModel`."""

import dataclasses
from typing import Any

from .convolutional import ACTIVATIONS, BlockSettings
from .network import read_settings

_DOWN = ("DownBlock2D", "AttnDownBlock2D")
_UP = ("UpBlock2D", "AttnUpBlock2D")


@dataclasses.dataclass(frozen=True)
class UNet2DConfig:
    """The entries of a `UNet2DModel`'s `config.json` that decide what it computes, with diffusers' names and
    defaults.

    Raises `ValueError` for options that are not supported, naming the option."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int | float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: int | float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float | int = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None

    def __post_init__(self):
        if not self.sample_size:
            raise ValueError(
                "The configuration has no sample_size, the side of the images in pixels; write it into config.json."
            )
        choices = {
            "time_embedding_type": ("positional", "fourier"),
            "mid_block_type": ("UNetMidBlock2D", None),
            "downsample_type": ("conv", "resnet"),
            "upsample_type": ("conv", "resnet"),
            "act_fn": tuple(ACTIVATIONS),
            "resnet_time_scale_shift": ("default", "scale_shift"),
            "class_embed_type": (None,),
        }
        for name, supported in choices.items():
            if getattr(self, name) not in supported:
                raise ValueError(
                    f"The configuration has {name} = {getattr(self, name)!r}; supported are "
                    f"{', '.join(map(str, supported))}."
                )
        for name, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
            others = sorted(set(getattr(self, name)) - set(known))
            if others:
                raise ValueError(
                    f"The configuration has {', '.join(others)} among its {name}; supported are {', '.join(known)}."
                )
            if len(getattr(self, name)) != len(self.block_out_channels):
                raise ValueError(
                    f"The configuration has {len(getattr(self, name))} {name} and {len(self.block_out_channels)} "
                    "block_out_channels; as many of each are expected."
                )
        if self.in_channels != self.out_channels:
            raise ValueError(
                f"The configuration has in_channels = {self.in_channels} and out_channels = {self.out_channels}; "
                "the same number is expected, without extra inputs or a predicted variance."
            )
        halvings = 2 ** (len(self.block_out_channels) - 1)
        if any(side % halvings for side in self.shape[:2]):
            raise ValueError(
                f"The configuration has sample_size = {self.sample_size} with {len(self.block_out_channels)} blocks, "
                f"which need a multiple of {halvings}."
            )

    @classmethod
    def read(cls, table: dict[str, Any]) -> "UNet2DConfig":
        """From the content of a `config.json`."""
        ignored = ("dropout", "num_train_timesteps")
        return read_settings(cls, table, name="UNet2DModel", ignored=ignored)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image."""
        size = self.sample_size
        assert size is not None
        height, width = (size, size) if isinstance(size, int) else size
        return height, width, self.in_channels

    @property
    def blocks(self) -> BlockSettings:
        """Of all its blocks."""
        return BlockSettings(
            embedding=self.time_embedding_dim or 4 * self.block_out_channels[0],
            groups=self.norm_num_groups,
            epsilon=self.norm_eps,
            activation=self.act_fn,
            scale_shift=self.resnet_time_scale_shift == "scale_shift",
        )
