"""Multilevel Euler-Maruyama for JAX: diffrax solvers for drifts at several levels of accuracy and cost."""

from ._brownian import GridBrownianPath as GridBrownianPath
from ._calibration import (
    AbstractPlan as AbstractPlan,
    calibrate as calibrate,
    Calibration as Calibration,
    fit_steps as fit_steps,
    FittedPlan as FittedPlan,
    FittedSteps as FittedSteps,
    make_plan as make_plan,
    Measurements as Measurements,
    Plan as Plan,
    steps_plan as steps_plan,
    StepsPlan as StepsPlan,
    Trials as Trials,
)
from ._coins import (
    AbstractCoins as AbstractCoins,
    coins_from_dict as coins_from_dict,
    IndependentCoins as IndependentCoins,
    NestedCoins as NestedCoins,
    StratifiedCoins as StratifiedCoins,
    SystematicCoins as SystematicCoins,
)
from ._learning import learn_probabilities as learn_probabilities, LearningHistory as LearningHistory
from ._probabilities import (
    AbstractProbabilities as AbstractProbabilities,
    ConstantProbabilities as ConstantProbabilities,
    PowerLaw as PowerLaw,
    Rates as Rates,
    TabulatedProbabilities as TabulatedProbabilities,
)
from ._solver import (
    AbstractMethod as AbstractMethod,
    AdamsBashforth as AdamsBashforth,
    EulerMaruyama as EulerMaruyama,
    evaluation_report as evaluation_report,
    EvaluationReport as EvaluationReport,
    expected_evaluations as expected_evaluations,
    Firings as Firings,
    LinearMultistep as LinearMultistep,
    method_from_dict as method_from_dict,
    MLAB2 as MLAB2,
    MLAB2State as MLAB2State,
    MLEM as MLEM,
    MLEMState as MLEMState,
    MultistepCoefficients as MultistepCoefficients,
    MultistepState as MultistepState,
    scale_to_budget as scale_to_budget,
)
from ._term import MultilevelTerm as MultilevelTerm

__version__ = "0.1.0"
