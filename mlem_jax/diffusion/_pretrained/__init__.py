"""Networks that others have trained: read from their files, with the process and prediction of their training."""

from .load import load_network as load_network
from .network import AbstractPretrained as AbstractPretrained
from .unet2d import UNet2D as UNet2D, UNet2DConfig as UNet2DConfig
