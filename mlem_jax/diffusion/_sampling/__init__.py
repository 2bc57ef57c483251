"""Drawing samples with a plan, in batches and on many devices."""

from .dpm_solver import dpm_solver as dpm_solver
from .frechet import frechet_distance as frechet_distance
from .pictures import make_grid as make_grid, save_grid as save_grid, save_images as save_images
from .samples import Samples as Samples
