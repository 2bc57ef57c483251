"""Multilevel Euler-Maruyama for JAX: drop-in for diffrax, drifts at several levels of cost."""

from ._brownian import GridBrownianPath as GridBrownianPath
from ._calibration.abstract_plan import AbstractPlan as AbstractPlan
from ._calibration.calibrate import calibrate as calibrate
from ._calibration.calibration import Calibration as Calibration, make_plan as make_plan
from ._calibration.fit_catalogue import FittedSteps as FittedSteps
from ._calibration.fit_plan import FittedPlan as FittedPlan
from ._calibration.fit_steps import fit_steps as fit_steps
from ._calibration.measurements import Measurements as Measurements
from ._calibration.plan import Plan as Plan
from ._calibration.steps_plan import steps_plan as steps_plan, StepsPlan as StepsPlan
from ._calibration.trials import Trials as Trials
from ._coins import (
    AbstractCoins as AbstractCoins,
    coins_from_dict as coins_from_dict,
    IndependentCoins as IndependentCoins,
    NestedCoins as NestedCoins,
    StratifiedCoins as StratifiedCoins,
    SystematicCoins as SystematicCoins,
)
from ._learning.learn import learn_probabilities as learn_probabilities, LearningHistory as LearningHistory
from ._probabilities import (
    AbstractProbabilities as AbstractProbabilities,
    ConstantProbabilities as ConstantProbabilities,
    PowerLaw as PowerLaw,
    Rates as Rates,
    TabulatedProbabilities as TabulatedProbabilities,
)
from ._solver.budget import (
    expected_evaluations as expected_evaluations,
    scale_to_budget as scale_to_budget,
)
from ._solver.evaluations import evaluation_report as evaluation_report, EvaluationReport as EvaluationReport
from ._solver.method import (
    AbstractMethod as AbstractMethod,
    AdamsBashforth as AdamsBashforth,
    EulerMaruyama as EulerMaruyama,
    method_from_dict as method_from_dict,
)
from ._solver.mlab2 import MLAB2 as MLAB2
from ._solver.mlem import MLEM as MLEM
from ._solver.multistep import LinearMultistep as LinearMultistep, MultistepState as MultistepState
from ._solver.multistep_coefficients import MultistepCoefficients as MultistepCoefficients
from ._solver.state import Firings as Firings, MLAB2State as MLAB2State, MLEMState as MLEMState
from ._term import MultilevelTerm as MultilevelTerm

__version__ = "0.1.0"
