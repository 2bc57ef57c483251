"""Measurements on pilot trajectories, and the plans that follow from them."""

from .abstract_plan import AbstractPlan as AbstractPlan
from .calibrate import calibrate as calibrate
from .calibration import Calibration as Calibration, make_plan as make_plan
from .fit_catalogue import FittedSteps as FittedSteps
from .fit_plan import FittedPlan as FittedPlan
from .fit_steps import fit_steps as fit_steps
from .measurements import Measurements as Measurements
from .plan import Plan as Plan
from .plan_choice import best_of as best_of
from .planning import MIDPOINT as MIDPOINT, UnreachableError as UnreachableError
from .report import gamma_lines as gamma_lines, regression as regression
from .steps_plan import steps_plan as steps_plan, StepsPlan as StepsPlan
from .trials import Trials as Trials
