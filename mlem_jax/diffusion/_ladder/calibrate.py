"""Calibration of a ladder on images of fresh noise."""

import dataclasses
from typing import Any

import jax.random as jr
from jaxtyping import Array, PRNGKeyArray

from ..._calibration.calibrate import calibrate
from ..._calibration.calibration import Calibration
from ..._calibration.fit_steps import fit_steps
from ..._solver.method import AbstractMethod
from .._predictor import NoisyTerms
from .ladder import Guidance, Ladder
from .methods import METHODS

# A denoiser's samples contain their start noise in a proportion of about their own size over s_max, half a per cent for
# s_max = 80; ten times as much means that the noise is not removed.
_NOISE_LEFT = 0.05


def calibrate_ladder(
    ladder: Ladder,
    *,
    sde: bool = False,
    method: AbstractMethod = METHODS[0],  # noqa: B008 (immutable)
    steps: int | None = None,
    pilots: int = 32,
    guidance: Guidance | None = None,
    fit_pilots: int = 0,
    progress: bool = True,
) -> Calibration:
    """Calibrates the probability flow, or the reverse SDE, on `pilots` images of fresh noise and Karras'
    grid of `steps` steps (by default 128, for the SDE 256).

    With classes each pilot has its own label, drawn uniformly; `guidance` as for `Ladder.term`. With `fit_pilots`,
    [`mlem_jax.fit_steps`][] also fits steps of all costs on that many further images, and plans then choose among them
    too; 128 are enough for images."""
    process, shape, classes = ladder.config.process, ladder.config.shape, ladder.config.classes
    ts = process.grid(steps or (256 if sde else 128))
    key = jr.key(ladder.config.training.seed + 2)
    keys = jr.split(key)
    term = ladder.term(sde=sde, guidance=guidance)
    terms = NoisyTerms(term, ts, shape) if sde else term

    def starts(noise_key: PRNGKeyArray, label_key: PRNGKeyArray, count: int) -> tuple[Array, Array | None]:
        y0s = process.s_max * jr.normal(noise_key, (count, *shape))
        return y0s, None if classes is None else jr.randint(label_key, (count,), 0, classes)

    # Folds of the key from 2 on, after the two that it is split into.
    y0s, labels = starts(keys[0], jr.fold_in(key, 2), pilots)
    found = calibrate(terms, ts, y0s, labels=labels, key=keys[1], method=method, progress=progress)
    if fit_pilots:
        y0s, labels = starts(jr.fold_in(key, 3), jr.fold_in(key, 4), fit_pilots)
        settings: dict[str, Any] = {"labels": labels, "key": jr.fold_in(key, 5), "progress": progress}
        found = found.with_fitted(fit_steps(terms, ts, y0s, time_variable="log", **settings))
    share = found.measurements.start_share
    if share is None or abs(share) < _NOISE_LEFT:
        return found
    remark = (
        f"The finest level does not denoise: {share:.0%} of the noise that sampling starts from is left at its end; "
        "errors are distances to that end. Train it longer, or give it a shape that can represent an image."
    )
    return dataclasses.replace(found, remarks=(remark,))
