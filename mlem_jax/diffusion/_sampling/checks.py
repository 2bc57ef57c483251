"""What `sample` was given, checked before anything is drawn or written."""

import operator
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from ..._calibration import AbstractPlan
from ..._custom_types import Numbers
from ..._term import find_multilevel_term
from .._ladder import AbstractLadder, Guidance
from .._network import check_label_range
from .._predictor import NoisePredictor, sampling_drifts
from .callback import StepReport
from .given import Given
from .sampler import Sampler


def levels_and_shape(
    levels: AbstractLadder | Sequence[NoisePredictor],
    shape: tuple[int, ...] | None,
    guidance: Guidance | None,
) -> tuple[tuple[NoisePredictor, ...], tuple[int, ...]]:
    """The predictors and the shape of a sample. Raises `ValueError`."""
    if isinstance(levels, AbstractLadder):
        if shape is not None:
            raise ValueError(f"A ladder knows the shape of its images, {levels.shape}; leave out shape.")
        return levels.predictors(guidance=guidance), levels.shape
    if not isinstance(levels, Sequence) or not all(isinstance(x, NoisePredictor) for x in levels):
        raise ValueError(
            "sample needs a Ladder, such as load_ladder(), or a list of NoisePredictors, cheapest first, and was "
            f"given {type(levels).__name__}. Write NoisePredictor(network, process, prediction)."
        )
    if guidance is not None:
        raise ValueError(
            f"guidance={guidance} is for a ladder. Write NoisePredictor(Guided(network, scale, null), ...) for each "
            "level instead."
        )
    if shape is None:
        raise ValueError("sample needs the shape of one sample; write for example shape=(32, 32, 3).")
    return tuple(levels), tuple(operator.index(size) for size in shape)


def positive_integer(name: str, value: Any) -> int:
    """The value as an `int`, whichever integer type it has. Raises `ValueError`."""
    try:
        found = 0 if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        found = 0
    if found < 1:
        raise ValueError(f"sample was given {name}={value!r}; an integer of at least 1 is expected.")
    return found


def check_plan(
    plan: Any, predictors: tuple[NoisePredictor, ...], shape: tuple[int, ...], stochasticity: float
) -> None:
    """Raises `ValueError` for a plan of other levels, another process or stochasticity, or another shape; `TypeError`
    for what is no plan."""
    if not isinstance(plan, AbstractPlan):
        raise TypeError(
            f"sample was given a plan of type {type(plan).__name__}; write plan=calibration.plan(budget=8), or "
            "plan=ladder.plan(budget=8)."
        )
    if plan.levels[-1] >= len(predictors):
        raise ValueError(
            f"The plan uses level {plan.levels[-1] + 1} and there are {len(predictors)} levels. Pass those that "
            "were calibrated."
        )
    if plan.levels_id:
        plan.require(sampling_drifts(predictors, stochasticity), np.zeros(shape))


def check_labels(n: int, args: PyTree, labels: PyTree, levels: Any) -> None:
    """Raises `ValueError` for labels of another number than the samples, or out of a ladder's range."""
    if labels is not None and args is not None:
        raise ValueError("Give args, the same for all samples, or labels, one for each; not both.")
    for leaf in jax.tree.leaves(labels):
        if leaf.ndim == 0 or leaf.shape[0] != n:
            raise ValueError(
                f"labels has an array of shape {leaf.shape} for n={n} samples; one entry per sample is expected, "
                f"shape ({n}, ...). For the same for all write args=..."
            )
    if isinstance(levels, AbstractLadder) and levels.classes is not None:
        for leaf in jax.tree.leaves((args, labels)):
            check_label_range("The ladder", np.asarray(leaf), levels.classes)


def check_given(
    given: Given, *, start_at: float | int | None, n: int, shape: tuple[int, ...], dtype: Any
) -> Given:
    """The images and masks for all samples. Raises `ValueError` for other shapes, or one argument of a pair."""
    for first, second, one, other in (
        ("start_from", "start_at", given.origin, start_at),
        ("known", "mask", given.known, given.mask),
    ):
        if (one is None) != (other is None):
            raise ValueError(f"{first} and {second} belong together; give both, or neither.")
    if start_at is not None and not start_at >= 0:
        raise ValueError(f"start_at={start_at}; a noise level s of at least 0 is expected.")
    return given._replace(
        origin=_for_all("start_from", given.origin, n, shape, dtype),
        known=_for_all("known", given.known, n, shape, dtype),
        mask=_for_all("mask", given.mask, n, shape, bool),
    )


def _for_all(name: str, images: Any, n: int, shape: tuple[int, ...], dtype: Any) -> jax.Array | None:
    if images is None:
        return None
    array = np.asarray(images)
    try:
        return jnp.asarray(np.broadcast_to(array, (n, *shape)), dtype)
    except ValueError as error:
        raise ValueError(
            f"{name} has the shape {array.shape} for {n} samples of shape {shape}; {(n, *shape)} is expected, or "
            f"{shape} for the same for all."
        ) from error


def saved_times(save_at: Numbers | None, plan: AbstractPlan) -> jax.Array | None:
    """The times at which trajectories are kept. Raises `ValueError`."""
    if save_at is None:
        return None
    given = np.asarray(save_at, float)
    within = given.size and np.all((given <= plan.ts[0]) & (given >= plan.ts[-1]))
    if given.ndim != 1 or not within or np.any(np.diff(given) >= 0):
        raise ValueError(
            f"save_at={given.tolist()}; decreasing values of s between {plan.ts[0]:g} and {plan.ts[-1]:g} "
            "are expected."
        )
    # The ends are those of the grid, whatever the rounding of the one given.
    return jnp.clip(jnp.asarray(given, plan.grid.dtype), plan.grid[-1], plan.grid[0])


def make_sampler(
    predictors: tuple[NoisePredictor, ...],
    plan: AbstractPlan,
    key: PRNGKeyArray,
    *,
    shape: tuple[int, ...],
    stochasticity: float,
    args: PyTree,
    save_at: jax.Array | None,
    coin_group: int,
    report: StepReport | None = None,
) -> Sampler:
    """What the samples are functions of, with all arrays JAX's."""
    noise_key, path_key, coin_key = jr.split(key, 3)
    sampler = Sampler(
        predictors=tuple(predictors[k] for k in plan.levels),
        # A state that is not finite is found afterwards, and explained.
        solver=plan.solver(key=coin_key, check_finite=False),
        ts=plan.grid,
        save_at=save_at,
        noise_key=noise_key,
        path_key=path_key,
        args=args,
        costs=tuple(plan.costs.tolist()),
        shape=shape,
        stochasticity=stochasticity,
        coin_group=None if plan.deterministic else coin_group,
        report=report,
    )
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, sampler)


def check_levels(sampler: Sampler, levels: tuple[int, ...], given: Given) -> None:
    """Raises `ValueError` for levels that do not fit the shape or each other, in a second and before any file."""
    index, first = jnp.asarray(0), given.at(0)
    _, term = find_multilevel_term(sampler.terms(index, first))
    args, start = sampler.level_args(first), sampler.start(index, first)
    try:
        term.check_levels(sampler.ts[0], start, args)
    except ValueError:
        # Networks do not know which level they are.
        for level, drift in zip(levels, term.levels, strict=True):
            try:
                eqx.filter_eval_shape(drift, sampler.ts[0], start, args)
            except ValueError as error:
                raise ValueError(f"Level {level + 1} does not fit: {error}") from error
        raise
