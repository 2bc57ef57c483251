"""Calibration of a ladder on images of fresh noise."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from ..._calibration import calibrate, Calibration, fit_steps, FittedSteps
from ..._solver import AbstractMethod
from .._predictor import NoisyTerms
from .base import AbstractLadder, Guidance
from .methods import calibration_name, METHODS

# A denoiser's samples contain their start noise in a proportion of about their own size over s_max, half a per cent for
# s_max = 80; ten times as much means that the noise is not removed.
_NOISE_LEFT = 0.05
# Levels that are trained for the same images differ by a few per cent of the drift where there is more noise than
# image, which is so in at least half of the steps; two independent noises differ by 140%.
_UNRELATED = 0.5
# The share of the distribution in the objective of fitted steps: images are looked at. Study 9 of the benchmarks has
# the distances with it and without.
_DISTRIBUTION = 0.9


def calibrate_ladder(
    ladder: AbstractLadder,
    *,
    sde: bool = False,
    method: AbstractMethod = METHODS[0],  # noqa: B008 (immutable)
    steps: int | None = None,
    pilots: int = 32,
    guidance: Guidance | None = None,
    fit_pilots: int = 0,
    like: Calibration | None = None,
    keep_in: str | Path | None = None,
    progress: bool = True,
) -> Calibration:
    """Calibrates the probability flow, or the reverse SDE, on `pilots` images of fresh noise and Karras'
    grid of `steps` steps (by default 128, for the SDE 256).

    With labels each pilot has its own, drawn uniformly; `guidance` as for `Ladder.term`. With `fit_pilots`,
    [`mlem_jax.fit_steps`][] also fits steps of all costs on that many further images, and plans then choose among them
    too; 128 are enough for images. `like`, a calibration of the same ladder, equation and pilots for another method,
    saves the measurement of what both have in common. `keep_in` is a folder in which finished parts are kept: the same
    call after an interruption continues from them."""
    key = jr.key(ladder.seed + 2)
    keys = jr.split(key)
    terms, ts = _problem(ladder, sde, steps, guidance)
    # Folds of the key from 2 on, after the two that it is split into.
    y0s, labels = _starts(ladder, keys[0], jr.fold_in(key, 2), pilots)
    shared: dict[str, Any] = {"keep_in": keep_in, "progress": progress}
    found = calibrate(terms, ts, y0s, labels=labels, key=keys[1], method=method, like=like, **shared)
    if fit_pilots:
        fitted = fit_ladder_steps(ladder, fit_pilots, sde=sde, steps=steps, guidance=guidance, **shared)
        found = found.with_fitted(fitted)
    return dataclasses.replace(found, remarks=(*ladder.remarks, *_remarks(found)))


def fit_ladder_steps(
    ladder: AbstractLadder,
    pilots: int,
    *,
    sde: bool = False,
    steps: int | None = None,
    guidance: Guidance | None = None,
    most: float = 32.0,
    keep_in: str | Path | None = None,
    progress: bool = True,
) -> FittedSteps:
    """The fitted steps of [`mlem_jax.diffusion.calibrate_ladder`][], up to a cost of `most`."""
    key = jr.key(ladder.seed + 2)
    terms, ts = _problem(ladder, sde, steps, guidance)
    y0s, labels = _starts(ladder, jr.fold_in(key, 3), jr.fold_in(key, 4), pilots)
    return fit_steps(
        terms,
        ts,
        y0s,
        labels=labels,
        key=jr.fold_in(key, 5),
        time_variable="log",
        most=most,
        distribution=_DISTRIBUTION,
        keep_in=keep_in,
        progress=progress,
    )


def _problem(
    ladder: AbstractLadder, sde: bool, steps: int | None, guidance: Guidance | None
) -> tuple[PyTree, Array]:
    """The terms of the probability flow, or of the reverse SDE with its noise, and their fine grid."""
    ts = ladder.process.grid(steps or (256 if sde else 128))
    term = ladder.term(sde=sde, guidance=guidance)
    return (NoisyTerms(term, ts, ladder.shape) if sde else term), ts


def _starts(
    ladder: AbstractLadder, noise_key: PRNGKeyArray, label_key: PRNGKeyArray, count: int
) -> tuple[Array, PyTree]:
    """Fresh noise, and a label for each image."""
    y0s = ladder.process.s_max * jr.normal(noise_key, (count, *ladder.shape))
    return y0s, _draw(ladder.labels, count, label_key)


_AnyLadder = TypeVar("_AnyLadder", bound=AbstractLadder)


def calibrate_methods(
    ladder: _AnyLadder,
    *,
    sde: bool = False,
    steps: int | None = None,
    pilots: int = 32,
    fit_pilots: int = 0,
    keep_in: str | Path | None = None,
    progress: bool = True,
) -> _AnyLadder:
    """The same ladder with calibrations for all methods, of which `ladder.plan` takes the best; those of the other
    equation it keeps. Arguments as for [`mlem_jax.diffusion.calibrate_ladder`][]; steps are fitted once."""
    found: dict[str, Calibration] = {}
    for method in METHODS:
        found[calibration_name(sde, method)] = calibrate_ladder(
            ladder,
            sde=sde,
            method=method,
            steps=steps,
            pilots=pilots,
            fit_pilots=fit_pilots if method == METHODS[-1] else 0,
            like=next(iter(found.values()), None),
            keep_in=keep_in,
            progress=progress,
        )
    return ladder.with_calibrations({**ladder.calibrations, **found})


def _draw(labels: PyTree, count: int, key: PRNGKeyArray) -> PyTree:
    """Some of all labels, at random."""
    if labels is None:
        return None
    chosen = jr.randint(key, (count,), 0, jax.tree.leaves(labels)[0].shape[0])
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], labels)


def _remarks(found: Calibration) -> tuple[str, ...]:
    """What the levels' sizes say about the networks."""
    measured, remarks = found.measurements, []
    share = measured.start_share
    if share is not None and abs(share) >= _NOISE_LEFT:
        remarks.append(
            f"The finest level does not denoise: {share:.0%} of the noise that sampling starts from is left at its "
            "end; errors are distances to that end. Train it longer, or give it a shape that can represent an image."
        )
    # Root mean squares over pilots and pixels in each step; the first level's are those of the drift.
    drift, increments = measured.increment_rms[:, 0], measured.increment_rms[:, 1:]
    for k, relative in enumerate(np.median(increments / drift[:, None], axis=0)):
        if relative > _UNRELATED:
            remarks.append(
                f"Level {k + 2} differs from level {k + 1} by {relative:.0%} of the drift, in the middle of all steps: "
                "they do not seem to be trained for the same images. Check the process, prediction and conditioning of "
                "both, and the scale of their latents."
            )
    return tuple(remarks)
