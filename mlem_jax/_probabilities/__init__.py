"""How often each level fires per step."""

from .base import AbstractProbabilities as AbstractProbabilities, Fixed as Fixed
from .constant import ConstantProbabilities as ConstantProbabilities
from .convert import as_probabilities as as_probabilities
from .power_law import PowerLaw as PowerLaw
from .rates import Rates as Rates
from .tabulated import TabulatedProbabilities as TabulatedProbabilities
