"""Ladders: described, built, saved, loaded and calibrated."""

from .base import (
    AbstractLadder as AbstractLadder,
    Guidance as Guidance,
    read_calibrations as read_calibrations,
)
from .calibrate import (
    calibrate_ladder as calibrate_ladder,
    calibrate_methods as calibrate_methods,
    fit_ladder_steps as fit_ladder_steps,
)
from .config import Config as Config
from .files import as_stored as as_stored, load_ladder as load_ladder, save_ladder as save_ladder
from .ladder import Ladder as Ladder
from .level import DiTLevel as DiTLevel, Level as Level
from .methods import calibration_name as calibration_name, METHODS as METHODS
from .predictors import PredictorLadder as PredictorLadder
from .preset import ladder_of_flops as ladder_of_flops
from .sizes import (
    count_flops as count_flops,
    count_parameters as count_parameters,
    level_sizes as level_sizes,
)
from .toml import config_text as config_text, parse_config as parse_config, read_config as read_config
from .training import Training as Training
