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

from ._data import (
    Data as Data,
    FASHION_MNIST as FASHION_MNIST,
    load_data as load_data,
    load_images as load_images,
    load_labels as load_labels,
)
from ._ladder import (
    AbstractLadder as AbstractLadder,
    calibrate_ladder as calibrate_ladder,
    calibrate_methods as calibrate_methods,
    Config as Config,
    DiTLevel as DiTLevel,
    Ladder as Ladder,
    Level as Level,
    load_ladder as load_ladder,
    PredictorLadder as PredictorLadder,
    read_config as read_config,
    save_ladder as save_ladder,
    Training as Training,
)
from ._network import (
    AbstractNetwork as AbstractNetwork,
    DiT as DiT,
    InputSkip as InputSkip,
    MixedPrecision as MixedPrecision,
    UNet as UNet,
)
from ._predictor import (
    Guided as Guided,
    GuidedEach as GuidedEach,
    GuidedLabel as GuidedLabel,
    NoisePredictor as NoisePredictor,
    NoisyTerms as NoisyTerms,
    Preconditioned as Preconditioned,
    ProbabilityFlow as ProbabilityFlow,
    reverse_diffusion as reverse_diffusion,
    ReverseDrift as ReverseDrift,
    sampling_terms as sampling_terms,
    StochasticDrift as StochasticDrift,
)
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
from ._sampling import (
    dpm_solver as dpm_solver,
    frechet_distance as frechet_distance,
    Samples as Samples,
    save_grid as save_grid,
    save_images as save_images,
)
from ._sampling.sample import sample as sample
from ._training.distil import distil as distil
from ._training.distillation import Distillation as Distillation
from ._training.train_ladder import train_ladder as train_ladder
