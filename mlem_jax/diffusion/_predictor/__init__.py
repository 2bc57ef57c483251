"""Networks as predictions of the noise, and the drifts of sampling made of them."""

from .adapter import (
    NoisePredictor as NoisePredictor,
    Preconditioned as Preconditioned,
    TrainedPrediction as TrainedPrediction,
    training_target as training_target,
)
from .drift import (
    NoisyTerms as NoisyTerms,
    ProbabilityFlow as ProbabilityFlow,
    reverse_diffusion as reverse_diffusion,
    ReverseDrift as ReverseDrift,
    sampling_drifts as sampling_drifts,
    sampling_terms as sampling_terms,
    StochasticDrift as StochasticDrift,
)
from .guidance import (
    Guided as Guided,
    GuidedEach as GuidedEach,
    GuidedLabel as GuidedLabel,
)
