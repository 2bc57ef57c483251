"""Training of networks side by side: on data, or matched to a teacher.

Everything that decides the result (parameters, averages, optimiser, loss history, step) is one
PyTree, saved by orbax; batches and noise are functions of the seed and the step. So a run that was
killed continues on the same loss curve.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, PyTree

from ..._io import full_disk_explained
from .._data import as_floats, Images
from .._ladder import Config
from .._mesh import put_everywhere, spread, take_home, training_mesh
from .._network import AbstractNetwork
from .batches import batch_indices, check_labels, Labelled, mirrored
from .checkpoints import Checkpoints
from .loop import Loop, Record
from .step import first_state, make_optimiser, make_step, State

_SETTINGS = ("batch_size", "warmup_steps", "clip_norm", "ema_decay", "seed", "precision", "flip")
# For each decay of `Training.ema_decays` the networks.
Averages = tuple[tuple[AbstractNetwork, ...], ...]
Watch = Callable[[int, Averages], object]


def train_networks(
    config: Config,
    networks: tuple[AbstractNetwork, ...],
    images: Images,
    directory: str | Path,
    *,
    steps: int,
    peak_learning_rate: float,
    labels: Int[np.ndarray, " n"] | None = None,
    teacher: AbstractNetwork | None = None,
    label: str = "training",
    save_every: int | None = None,
    progress: bool = True,
    watch: Watch | None = None,
    record: Record | None = None,
) -> tuple[Averages, Float[np.ndarray, "windows networks"]]:
    """Trains several networks side by side on the same batches, the same noise and the same dropped labels.

    **Arguments:**

    - `directory`: where checkpoints go, each of a finite state. A run that finds one there continues it, also one of
        fewer steps; the learning rate is then that of the longer run from there on.
    - `images`: bytes, or numbers in `[-1, 1]`, in memory or mapped from a file.
    - `labels`: of the images, for a configuration with classes.
    - `teacher`: if given, the networks learn its output, for the same labels, instead of the data's target.
    - `save_every`: steps from one checkpoint to the next; by default one is written every half minute. Another one is
        written at the end, and on SIGINT and SIGTERM.
    - `watch`: called every `training.sheet_every` steps with the number of steps done and the averaged networks of each
        decay.
    - `record`: called every `HISTORY_EVERY` steps with the number of steps done and the mean losses of these steps.

    Each batch is sharded over all devices, or the largest number of devices that divides it evenly. The number of
    devices changes the result by rounding only.

    **Returns:** for each of `training.ema_decays` the networks with averaged (EMA) parameters, and the mean loss of
    every `HISTORY_EVERY` steps. Equal to those of an uninterrupted run wherever the run was stopped.

    Raises `ValueError` if there are fewer images than one batch, if the images have another shape
    than the networks, if the labels do not fit, or if the directory holds a damaged checkpoint or a run of
    other networks or settings, or of more steps; `FloatingPointError` if a loss or a parameter is not finite; `OSError`
    if the disk is full, with earlier checkpoints kept; `TrainingStopped`, a `KeyboardInterrupt`,
    on SIGINT and SIGTERM, with everything up to there kept.
    """
    training = config.training
    if not networks:
        return ((),) * len(training.ema_decays), np.zeros((0, 0), np.float32)
    if len(images) < training.batch_size or images.shape[1:] != config.shape:
        raise ValueError(
            f"Training needs at least batch_size={training.batch_size} images of shape {config.shape} "
            f"and was given an array of shape {images.shape}."
        )
    check_labels(config.classes, labels, len(images))
    optimiser = make_optimiser(training, steps, peak_learning_rate)
    params, static = zip(*(eqx.partition(n, eqx.is_inexact_array) for n in networks), strict=True)
    mesh = training_mesh(training.batch_size)
    state = first_state(params, optimiser, steps, decays=len(training.ema_decays))
    state, teacher = put_everywhere(mesh, (state, teacher))

    def averaged(state: State) -> Averages:
        return tuple(
            tuple(eqx.combine(average, rest) for average, rest in zip(averages, static, strict=True))
            for averages in take_home(state.averages)
        )

    loop = Loop(
        label=label,
        steps=steps,
        peak_learning_rate=peak_learning_rate,
        step=make_step(config, static, optimiser, mesh),
        batch=_batches(config, (images, labels), teacher, mesh),
        watch=None if watch is None else lambda done, state: watch(done, averaged(state)),
        watch_every=training.sheet_every,
        record=record,
    )
    run = _run(config, params, steps, peak_learning_rate, matched=teacher is not None)
    with (
        full_disk_explained(Path(directory)),
        Checkpoints(directory, run, every=save_every) as checkpoints,
    ):
        state = put_everywhere(mesh, checkpoints.restore(state))
        state = loop.run(state, checkpoints, progress=progress)
    return averaged(state), np.asarray(state.history)


def _batches(
    config: Config, data: Labelled, teacher: AbstractNetwork | None, mesh: Mesh
) -> Callable[[int], PyTree]:
    """The images and labels of each step, spread over the devices, and the teacher."""
    (images, labels), training = data, config.training

    def batch(step: int) -> PyTree:
        chosen = batch_indices(training.seed, step, training.batch_size, len(images))
        numbers = None if labels is None else labels[chosen].astype(np.int32)
        pictures = as_floats(images[chosen])
        if training.flip:
            pictures = mirrored(pictures, training.seed, step)
        return (*spread(mesh, (pictures, numbers)), teacher)

    return batch


def _run(
    config: Config, params: tuple[PyTree, ...], steps: int, peak_learning_rate: float, *, matched: bool
) -> dict[str, Any]:
    """The settings in which a run must agree with the one that it continues, as JSON reads them back."""
    training = config.training
    log_normal = training.match_log_normal
    return {
        "steps": steps,
        "peak_learning_rate": peak_learning_rate,
        "parameters": [sum(x.size for x in jax.tree.leaves(p)) for p in params],
        "prediction": config.prediction,
        "process": repr(config.process),
        "teacher": matched,
        "label_dropout": None if config.classes is None else training.label_dropout,
        "log_normal": list(log_normal) if matched and log_normal is not None else None,
        "more_ema_decays": list(training.more_ema_decays),
        **{name: getattr(training, name) for name in _SETTINGS},
    }
