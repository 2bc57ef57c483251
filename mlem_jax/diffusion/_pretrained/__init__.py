"""Networks that others have trained: read from their files, with the process and prediction of their training."""

from .decoder import Decoder as Decoder, DecoderConfig as DecoderConfig, load_decoder as load_decoder
from .dit import PretrainedDiT as PretrainedDiT, PretrainedDiTConfig as PretrainedDiTConfig
from .edm2 import EDM2 as EDM2
from .edm2_config import EDM2Config as EDM2Config
from .family import NotInFilesError as NotInFilesError
from .jit import JiT as JiT, JiTConfig as JiTConfig
from .load import load_network as load_network
from .network import AbstractPretrained as AbstractPretrained
from .unet2d import UNet2D as UNet2D
from .unet2d_config import UNet2DConfig as UNet2DConfig
