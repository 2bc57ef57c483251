"""The methods that a ladder is calibrated for, and the names of their calibrations."""

from ..._solver import AbstractMethod, AdamsBashforth, EulerMaruyama

# A diffusion model's drift is closer to linear in log s than in s, so that log s is the better variable to extrapolate
# in.
METHODS = (EulerMaruyama(), AdamsBashforth("log"))


def calibration_name(sde: bool, method: AbstractMethod) -> str:
    """Of the file and the entry in `Ladder.calibrations`, such as `"ode"`, `"ode_2"` or `"sde"`."""
    return ("sde" if sde else "ode") + ("" if method == METHODS[0] else f"_{method.order}")
