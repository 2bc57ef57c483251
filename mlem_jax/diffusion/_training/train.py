"""Training of networks side by side: on data, or matched to a teacher.

Everything that decides the result (parameters, averages, optimiser, loss history, step) is one
PyTree, saved by orbax; batches and noise are functions of the seed and the step. So a run that was
killed continues on the curve that it was on.
"""

import collections
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ..._io import full_disk_explained
from ..._progress import show_progress
from .._data import as_floats, Images
from .._ladder import Config
from .._mesh import put_everywhere, spread, take_home, training_mesh
from .._network import AbstractNetwork
from .batches import batch_indices, check_labels
from .checkpoints import Checkpoints
from .signals import StopRequest, TrainingStopped
from .step import first_state, HISTORY_EVERY, make_optimiser, make_step, State

_SETTINGS = ("batch_size", "warmup_steps", "clip_norm", "ema_decay", "seed", "precision")
Watch = Callable[[int, tuple[AbstractNetwork, ...]], object]


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
) -> tuple[tuple[AbstractNetwork, ...], Float[np.ndarray, "windows networks"]]:
    """Trains several networks side by side on the same batches, the same noise and the same dropped labels.

    **Arguments:**

    - `directory`: where checkpoints go, each of a finite state. A run that finds one there continues it, also one of
        fewer steps; the learning rate is then that of the longer run from there on.
    - `images`: bytes, or numbers in `[-1, 1]`, in memory or mapped from a file.
    - `labels`: of the images, for a configuration with classes.
    - `teacher`: if given, the networks learn its output, for the same labels, instead of the data's target.
    - `save_every`: steps from one checkpoint to the next; by default one is written every half minute. Another one is
        written at the end, and on SIGINT and SIGTERM.
    - `watch`: called every `training.sheet_every` steps with the number of steps done and the averaged networks.

    Each batch is spread over all devices, or as many as divide it evenly; they change the result by rounding only.

    **Returns:** the networks with averaged (EMA) parameters, and the mean loss of every
    `HISTORY_EVERY` steps. Equal to those of an uninterrupted run wherever the run was stopped.

    Raises `ValueError` if there are fewer images than one batch, if the images have another shape
    than the networks, if the labels do not fit, or if the directory holds a damaged checkpoint or a run of
    other networks or settings, or of more steps; `FloatingPointError` if a loss or a parameter is not finite; `OSError`
    that says so where the disk is full, with the checkpoints before it kept; `TrainingStopped`, a `KeyboardInterrupt`,
    on SIGINT and SIGTERM, with everything up to there kept.
    """
    training = config.training
    if not networks:
        return (), np.zeros((0, 0), np.float32)
    if len(images) < training.batch_size or images.shape[1:] != config.shape:
        raise ValueError(
            f"Training needs at least batch_size={training.batch_size} images of shape {config.shape} "
            f"and was given an array of shape {images.shape}."
        )
    check_labels(config.classes, labels, len(images))
    optimiser = make_optimiser(training, steps, peak_learning_rate)
    params, static = zip(*(eqx.partition(n, eqx.is_inexact_array) for n in networks), strict=True)
    mesh = training_mesh(training.batch_size)
    state, teacher = put_everywhere(mesh, (first_state(params, optimiser, steps), teacher))
    step_fn = make_step(config, static, optimiser, mesh)
    run = _run(config, params, steps, peak_learning_rate, matched=teacher is not None)

    def combined(state: State) -> tuple[AbstractNetwork, ...]:
        pairs = zip(take_home(state.average), static, strict=True)
        return tuple(eqx.combine(average, rest) for average, rest in pairs)

    def batch(step: int) -> PyTree:
        chosen = batch_indices(training.seed, step, training.batch_size, len(images))
        numbers = None if labels is None else labels[chosen].astype(np.int32)
        return (*spread(mesh, (as_floats(images[chosen]), numbers)), teacher)

    with (
        full_disk_explained(Path(directory)),
        Checkpoints(directory, run, every=save_every) as checkpoints,
        StopRequest() as stop,
    ):
        state = put_everywhere(mesh, checkpoints.restore(state))
        start = int(state.step)
        recent = collections.deque(maxlen=HISTORY_EVERY)
        with show_progress(label, total=steps, done=start, unit="steps", shown=progress) as display:
            losses = None
            for step in range(start, steps):
                before = losses
                state, losses = step_fn(batch(step), state)
                # The step before is waited for, so that this loop is never further than one step ahead of the device:
                # rates, checkpoints by the clock and signals are then about what has really been done.
                if before is not None:
                    recent.append(np.asarray(before))
                    display.update(step, _shown(recent))
                done = step + 1
                # Asked once, because a signal may come between the save and the end of this step.
                signum = stop.signum
                save = done == steps or signum is not None or checkpoints.due(done)
                if save or done % HISTORY_EVERY == 0:
                    _check_finite(state, f"{label}: ", peak_learning_rate, directory, whole=save)
                if save:
                    checkpoints.save(done, state)
                if watch is not None and done % training.sheet_every == 0:
                    watch(done, combined(state))
                if signum is not None:
                    raise _stopped(signum, label, done, steps)
            if losses is not None:
                recent.append(np.asarray(losses))
                display.update(steps, _shown(recent))
        if stop.signum is not None:
            raise _stopped(stop.signum, label, steps, steps)
    return combined(state), np.asarray(state.history)


def _run(
    config: Config, params: tuple[PyTree, ...], steps: int, peak_learning_rate: float, *, matched: bool
) -> dict[str, Any]:
    """What a run has to agree in with the one that it continues, as JSON gives it back."""
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
        **{name: getattr(training, name) for name in _SETTINGS},
    }


def _shown(recent: collections.deque) -> str:
    return "loss " + " ".join(f"{loss:.4f}" for loss in np.mean(recent, axis=0))


def _check_finite(state: State, where: str, peak: float, directory: str | Path, *, whole: bool) -> None:
    """Raises `FloatingPointError` unless the losses are finite, and with `whole` all numbers of the state: it can be
    spoilt by the very last update, which no loss has seen yet."""
    step = int(state.step)
    losses = np.asarray(state.history[(step - 1) // HISTORY_EVERY])
    if not np.all(np.isfinite(losses)) or (whole and not _all_finite(state)):
        raise FloatingPointError(
            f"{where}a loss or a parameter is not finite near step {step} (losses {losses}, peak learning rate "
            f"{peak:g}). Train again with a lower rate and another --out. Checkpoints in {directory} are from before "
            "and usable."
        )


@jax.jit
def _all_finite(state: State) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]))


def _stopped(signum: int, label: str, done: int, steps: int) -> TrainingStopped:
    return TrainingStopped(
        f"{signal.Signals(signum).name}: stopped after step {done:,} of {steps:,} ({label}), which is saved. Run the "
        "same again to continue from there.",
        signum,
    )
