"""Diffusion models as ladders of levels: processes, drifts, guidance, UNets, training."""

from .._extras import require

require(
    "mlem_jax.diffusion",
    "diffusion",
    "matplotlib",
    "ml_dtypes",
    "optax",
    "orbax",
    "PIL",
    "rich",
    "safetensors",
    "tomli_w",
)

from ._data.idx import (
    FASHION_MNIST as FASHION_MNIST,
    load_images as load_images,
    load_labels as load_labels,
)
from ._data.load import Data as Data, load_data as load_data
from ._ladder.config import Config as Config
from ._ladder.ladder import (
    calibrate_ladder as calibrate_ladder,
    Ladder as Ladder,
    load_ladder as load_ladder,
    save_ladder as save_ladder,
)
from ._ladder.level import DiTLevel as DiTLevel, Level as Level
from ._ladder.toml import read_config as read_config
from ._ladder.training import Training as Training
from ._network.dit import DiT as DiT
from ._network.input_skip import InputSkip as InputSkip
from ._network.layers import AbstractNetwork as AbstractNetwork
from ._network.precision import MixedPrecision as MixedPrecision
from ._network.unet import UNet as UNet
from ._predictor.adapter import NoisePredictor as NoisePredictor, Preconditioned as Preconditioned
from ._predictor.drift import (
    NoisyTerms as NoisyTerms,
    ProbabilityFlow as ProbabilityFlow,
    reverse_diffusion as reverse_diffusion,
    ReverseDrift as ReverseDrift,
    sampling_terms as sampling_terms,
    StochasticDrift as StochasticDrift,
)
from ._predictor.guidance import Guided as Guided
from ._pretrained import (
    AbstractPretrained as AbstractPretrained,
    Decoder as Decoder,
    DecoderConfig as DecoderConfig,
    EDM2 as EDM2,
    EDM2Config as EDM2Config,
    JiT as JiT,
    JiTConfig as JiTConfig,
    load_decoder as load_decoder,
    load_network as load_network,
    PretrainedDiT as PretrainedDiT,
    PretrainedDiTConfig as PretrainedDiTConfig,
    UNet2D as UNet2D,
    UNet2DConfig as UNet2DConfig,
)
from ._process import (
    AbstractProcess as AbstractProcess,
    EDM as EDM,
    FlowMatching as FlowMatching,
    VarianceExploding as VarianceExploding,
    VariancePreserving as VariancePreserving,
)
from ._sampling.pictures import save_grid as save_grid, save_images as save_images
from ._sampling.sample import sample as sample
from ._sampling.samples import Samples as Samples
from ._training.train_ladder import train_ladder as train_ladder
