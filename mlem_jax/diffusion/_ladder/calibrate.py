"""Calibration of a ladder on images of fresh noise."""

import dataclasses

import jax.random as jr

from ..._calibration.calibrate import calibrate
from ..._calibration.calibration import Calibration
from ..._solver.method import AbstractMethod
from .._predictor import NoisyTerms
from .ladder import Guidance, Ladder
from .methods import METHODS

# A denoiser's samples contain of its start noise about their own size over s_max: half a per cent for s_max = 80.
_NOISE_LEFT = 0.05


def calibrate_ladder(
    ladder: Ladder,
    *,
    sde: bool = False,
    method: AbstractMethod = METHODS[0],  # noqa: B008 (immutable)
    steps: int | None = None,
    pilots: int = 32,
    guidance: Guidance | None = None,
    progress: bool = True,
) -> Calibration:
    """Calibrates the probability flow, or the reverse SDE, on `pilots` images of fresh noise and Karras'
    grid of `steps` steps (by default 128, for the SDE 256).

    With classes each pilot has a label of its own, drawn uniformly; `guidance` as for `Ladder.term`."""
    process, shape, classes = ladder.config.process, ladder.config.shape, ladder.config.classes
    ts = process.grid(steps or (256 if sde else 128))
    key = jr.key(ladder.config.training.seed + 2)
    keys = jr.split(key)
    y0s = process.s_max * jr.normal(keys[0], (pilots, *shape))
    # The next key after these two.
    labels = None if classes is None else jr.randint(jr.fold_in(key, 2), (pilots,), 0, classes)
    term = ladder.term(sde=sde, guidance=guidance)
    terms = NoisyTerms(term, ts, shape) if sde else term
    found = calibrate(terms, ts, y0s, labels=labels, key=keys[1], method=method, progress=progress)
    share = found.measurements.start_share
    if share is None or abs(share) < _NOISE_LEFT:
        return found
    remark = (
        f"The finest level does not denoise: {share:.0%} of the noise that sampling starts from is left at its end; "
        "errors are distances to that end. Train it longer, or give it a shape that can represent an image."
    )
    return dataclasses.replace(found, remarks=(remark,))
