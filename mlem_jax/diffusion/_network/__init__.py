"""The networks of a ladder: UNets and transformers on channels-last images."""

from .checks import check_call as check_call, check_label_range as check_label_range
from .dit import check_dit_sizes as check_dit_sizes, DiT as DiT
from .folding import depth_to_space as depth_to_space, space_to_depth as space_to_depth
from .input_skip import InputSkip as InputSkip, needs_input_skip as needs_input_skip
from .network import AbstractNetwork as AbstractNetwork
from .precision import MixedPrecision as MixedPrecision
from .unet import check_sizes as check_sizes, UNet as UNet
