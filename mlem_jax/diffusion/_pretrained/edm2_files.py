"""EDM2 from its authors' arrays."""

import functools
import re
from typing import Any

from .._process import EDM
from .edm2 import EDM2
from .edm2_config import EDM2Config
from .family import Found, Source
from .files import Checkpoint
from .network import read_settings
from .schedule import Training


def find_edm2(source: Source) -> Found:
    """An EDM2 network: predicted clean image, noise of standard deviation 0.002 to 80."""
    checkpoint = source.checkpoint
    # The uncertainty that is learned beside the image, for training only.
    checkpoint.rename({name: None for name in checkpoint.shapes if name.startswith("logvar_")})
    table = {**_sizes(checkpoint), **(source.config or {}), **source.settings}
    config = read_settings(EDM2Config, table, name="EDM2", ignored=())
    return Found("EDM2 network", functools.partial(EDM2, config), Training(EDM(), "x0", "sigma"))


def _sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the names and shapes tell."""
    there = checkpoint.shapes
    stems = [match for name in there if (match := re.fullmatch(r"unet\.enc\.(\d+)x\d+_conv\.weight", name))]
    if len(stems) != 1 or "unet.out_conv.weight" not in there:
        raise ValueError(
            f"{checkpoint.path} is not an EDM2 network: it lacks unet.enc.*_conv or unet.out_conv."
        )
    size = int(stems[0][1])
    width = there[stems[0][0]][0]
    multipliers, attention = [], []
    side = size
    while (name := f"unet.enc.{side}x{side}_block0.conv_res0.weight") in there:
        multipliers.append(there[name][0] // width)
        if f"unet.enc.{side}x{side}_block0.attn_qkv.weight" in there:
            attention.append(side)
        side //= 2
    depth = len([name for name in there if re.match(rf"unet\.enc\.{size}x{size}_block\d+\.emb_gain", name)])
    return {
        "size": size,
        "channels": there["unet.out_conv.weight"][0],
        "classes": there.get("unet.emb_label.weight", (0, 0))[1],
        "width": width,
        "multipliers": tuple(multipliers),
        "depth": depth,
        "attention_sizes": tuple(attention),
    }
