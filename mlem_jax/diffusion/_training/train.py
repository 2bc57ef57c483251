"""Training: the finest level on data, the smaller levels matched to the finest.

Everything that decides the result (parameters, averages, optimiser, loss history, step) is one
PyTree, saved by orbax; batches and noise are functions of the seed and the step. So a run that was
killed continues on the curve that it was on.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..._io import full_disk, full_disk_explained
from .._data.load import as_floats, Images
from .._ladder.config import Config
from .._ladder.training import Training
from .._mesh import keep_everywhere, put_everywhere, spread, take_home, training_mesh
from .._network.layers import AbstractNetwork
from .._network.precision import MixedPrecision
from .batches import batch_indices, check_labels, drop_labels, noised

HISTORY_EVERY = 50
_SAVE_EVERY = 500
_SETTINGS = ("batch_size", "warmup_steps", "clip_norm", "ema_decay", "seed", "precision")


class _State(eqx.Module):
    """All that a run of training is; one entry per network in each tuple."""

    params: tuple[PyTree[Array], ...]
    average: tuple[PyTree[Array], ...]
    optimiser: tuple[PyTree[Array], ...]
    # Mean loss of each window of HISTORY_EVERY steps, one row per window.
    history: Float[Array, "windows networks"]
    step: Array


def _optimiser(training: Training, steps: int, peak: float) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak, min(training.warmup_steps, steps // 2), steps, end_value=0.01 * peak
    )
    return optax.chain(optax.clip_by_global_norm(training.clip_norm), optax.adam(schedule))


def _make_step(
    config: Config, static: tuple[PyTree, ...], optimiser: optax.GradientTransformation, mesh: Mesh
) -> Callable:
    training = config.training

    def evaluate(network, x, noise_level, labels):
        if training.precision != "float32":
            network = MixedPrecision(network, training.precision)
        return network(x, noise_level, labels)

    def loss_fn(params, static_, x, noise_level, labels, target):
        out = evaluate(eqx.combine(params, static_), x, noise_level, labels)
        return jnp.mean((out - target) ** 2)

    @eqx.filter_jit(donate="all-except-first")
    def step_fn(inputs, state: _State) -> _State:
        images, labels, teacher = inputs
        key = jr.fold_in(jr.key(training.seed + 1), state.step)
        log_normal = None if teacher is None else training.match_log_normal
        x, noise_level, target = noised(config, images, key, log_normal=log_normal)
        if config.classes is not None:
            # The next key after the two that `noised` splits off.
            labels = drop_labels(labels, config.classes, training.label_dropout, jr.fold_in(key, 2))
        if teacher is not None:
            target = evaluate(teacher, x, noise_level, labels)
        params, average, opt_state, losses = [], [], [], []
        # Early averages forget the initial parameters quickly.
        t = state.step.astype(jnp.result_type(float))
        decay = jnp.minimum(training.ema_decay, (1 + t) / (10 + t))
        networks = zip(state.params, static, state.average, state.optimiser, strict=True)
        for p, static_, avg, opt in networks:
            loss, grads = jax.value_and_grad(loss_fn)(p, static_, x, noise_level, labels, target)
            # optax mixes dtypes and ranks inside, whatever the user has forbidden.
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                updates, opt = optimiser.update(grads, opt, p)
            p = optax.apply_updates(p, updates)
            params.append(p)
            average.append(optax.incremental_update(p, avg, 1 - decay))
            opt_state.append(opt)
            losses.append(loss)
        window, seen = jnp.divmod(state.step, HISTORY_EVERY)
        mean = state.history[window]
        count = (seen + 1).astype(mean.dtype)
        history = state.history.at[window].set(mean + (jnp.stack(losses) - mean) / count)
        new = _State(tuple(params), tuple(average), tuple(opt_state), history, state.step + 1)
        # Gradients are summed over the devices, each of which had a part of the batch.
        return keep_everywhere(mesh, new)

    return step_fn


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
    save_every: int = _SAVE_EVERY,
    progress: bool = True,
    watch: Callable[[int, tuple[AbstractNetwork, ...]], object] | None = None,
) -> tuple[tuple[AbstractNetwork, ...], Float[np.ndarray, "windows networks"]]:
    """Trains several networks side by side on the same batches, the same noise and the same dropped labels.

    **Arguments:**

    - `directory`: where checkpoints go, each of a finite state. A run that finds one there continues it.
    - `images`: bytes, or numbers in `[-1, 1]`, in memory or mapped from a file.
    - `labels`: of the images, for a configuration with classes.
    - `teacher`: if given, the networks learn its output, for the same labels, instead of the data's target.
    - `watch`: called every `training.sheet_every` steps with the number of steps done and the averaged networks.

    Each batch is spread over all devices, or as many as divide it evenly; they change the result by rounding only.

    **Returns:** the networks with averaged (EMA) parameters, and the mean loss of every
    `HISTORY_EVERY` steps. Equal to those of an uninterrupted run wherever the run was stopped.

    Raises `ValueError` if there are fewer images than one batch, if the images have another shape
    than the networks, if the labels do not fit, or if the directory holds a damaged checkpoint or a run of
    other networks or settings; `FloatingPointError` if a loss or a parameter is not finite; `OSError` that says so
    where the disk is full, with the checkpoints before it kept.
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
    optimiser = _optimiser(training, steps, peak_learning_rate)
    params, static = zip(*(eqx.partition(n, eqx.is_inexact_array) for n in networks), strict=True)
    windows = -(-steps // HISTORY_EVERY)
    state = _State(
        # Copies, because a step donates its state and the caller's networks stay the caller's.
        params=jax.tree.map(jnp.copy, params),
        average=jax.tree.map(jnp.copy, params),
        optimiser=tuple(optimiser.init(p) for p in params),
        history=jnp.zeros((windows, len(networks))),
        step=jnp.asarray(0),
    )
    mesh = training_mesh(training.batch_size)
    state, teacher = put_everywhere(mesh, (state, teacher))
    step_fn = _make_step(config, static, optimiser, mesh)
    # What a run has to agree in with the one that it continues.
    run = {
        "steps": steps,
        "peak_learning_rate": peak_learning_rate,
        "parameters": [sum(x.size for x in jax.tree.leaves(p)) for p in params],
        "prediction": config.prediction,
        "process": repr(config.process),
        "teacher": teacher is not None,
        "label_dropout": None if config.classes is None else training.label_dropout,
        "log_normal": None if teacher is None else _as_list(training.match_log_normal),
        **{name: getattr(training, name) for name in _SETTINGS},
    }

    def combined(state: _State) -> tuple[AbstractNetwork, ...]:
        pairs = zip(take_home(state.average), static, strict=True)
        return tuple(eqx.combine(average, rest) for average, rest in pairs)

    options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  {task.fields[rate]:.1f} steps/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not progress,
    )
    handler = ocp.StandardCheckpointHandler()
    with (
        full_disk_explained(Path(directory)),
        ocp.CheckpointManager(Path(directory).absolute(), item_handlers=handler, options=options) as manager,
        bar,
    ):
        if manager.latest_step() is not None:
            state = _restore(manager, state, run, Path(directory))
        start = int(state.step)
        task = bar.add_task(label, total=steps, completed=start, loss="-", rate=0.0)
        for step in range(start, steps):
            chosen = batch_indices(training.seed, step, training.batch_size, len(images))
            batch = (as_floats(images[chosen]), None if labels is None else labels[chosen].astype(np.int32))
            state = step_fn((*spread(mesh, batch), teacher), state)
            save = (step + 1) % save_every == 0 or step + 1 == steps
            if save or (step + 1) % HISTORY_EVERY == 0:
                losses = np.asarray(state.history[step // HISTORY_EVERY])
                # The state can be spoilt by the very last update, which no loss has seen yet.
                if not np.all(np.isfinite(losses)) or (save and not _all_finite(state)):
                    raise FloatingPointError(
                        f"{label}: a loss or a parameter is not finite near step {step + 1} (losses "
                        f"{losses}, peak learning rate {peak_learning_rate:g}). Train again with a lower "
                        f"rate and another --out. Checkpoints in {directory} are from before and usable."
                    )
                shown = " ".join(f"{loss:.4f}" for loss in losses)
                bar.update(task, completed=step + 1, loss=shown, rate=bar.tasks[task].speed or 0.0)
            if save:
                _check_space(Path(directory), state)
                manager.save(step + 1, args=ocp.args.StandardSave(state), custom_metadata=run)
            if watch is not None and (step + 1) % training.sheet_every == 0:
                watch(step + 1, combined(state))
    return combined(state), np.asarray(state.history)


def _as_list(pair: tuple[float, float] | None) -> list[float] | None:
    """As JSON gives it back."""
    return None if pair is None else list(pair)


@jax.jit
def _all_finite(state: _State) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]))


def _check_space(directory: Path, state: _State) -> None:
    """Raises `OSError` where a checkpoint surely has no room; orbax would go on with tracebacks from its threads."""
    leaves = jax.tree.leaves(state)
    # Parameters hardly compress, and each array has a description of its own.
    needed = sum(leaf.nbytes for leaf in leaves) + 1024 * len(leaves)
    if shutil.disk_usage(directory).free < needed:
        raise full_disk(directory)


def _restore(manager: ocp.CheckpointManager, state: _State, run: dict[str, Any], directory: Path) -> _State:
    step = manager.latest_step()
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    try:
        begun = manager.metadata(step).custom_metadata or {}
        differ = [f"{k} (there {begun[k]}, now {run[k]})" for k in run if begun.get(k, run[k]) != run[k]]
        if not differ:
            return cast(_State, manager.restore(step, args=ocp.args.StandardRestore(shapes)))
    except Exception as error:
        # Damaged files make orbax raise anything, down to Exception itself.
        earlier = [s for s in manager.all_steps() if s != step]
        before = f"step {max(earlier)}" if earlier else "the beginning"
        raise ValueError(
            f"The checkpoint {directory / str(step)} is damaged or of other networks; nothing was deleted. "
            f"Move that folder away to continue from {before}, or choose another --out. (orbax says: "
            f"{str(error)[:200]})"
        ) from error
    raise ValueError(
        f"{directory} holds a run that differs in {', '.join(differ)}. Continue it with the "
        "configuration it was started with, or choose another --out."
    )
