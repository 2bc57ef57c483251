"""The multilevel solvers, the methods that name them, and what a solve costs."""

from .base import AbstractMultilevelSolver as AbstractMultilevelSolver, with_folded_key as with_folded_key
from .budget import expected_evaluations as expected_evaluations, scale_to_budget as scale_to_budget
from .evaluations import evaluation_report as evaluation_report, EvaluationReport as EvaluationReport
from .method import (
    AbstractMethod as AbstractMethod,
    AdamsBashforth as AdamsBashforth,
    EulerMaruyama as EulerMaruyama,
    method_from_dict as method_from_dict,
)
from .mlab2 import MLAB2 as MLAB2
from .mlem import MLEM as MLEM
from .multistep import LinearMultistep as LinearMultistep, MultistepState as MultistepState
from .multistep_coefficients import (
    adams_bashforth_weights as adams_bashforth_weights,
    MultistepCoefficients as MultistepCoefficients,
)
from .state import Firings as Firings, MLAB2State as MLAB2State, MLEMState as MLEMState
