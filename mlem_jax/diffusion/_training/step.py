"""One step of training: noise, losses, gradients, the optimiser's update, averages of the parameters."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from .._ladder import Config, Training
from .._mesh import keep_everywhere
from .._network import MixedPrecision
from .batches import drop_labels, noised

# Steps of which the history has the mean loss.
HISTORY_EVERY = 50
# The learning rate falls to this part of its peak.
_LAST_RATE = 0.01


class State(eqx.Module):
    """The complete state of a training run; one entry per network in each tuple. `averages` has such a tuple for each
    decay."""

    params: tuple[PyTree[Array], ...]
    averages: tuple[tuple[PyTree[Array], ...], ...]
    optimiser: tuple[PyTree[Array], ...]
    # Mean loss of each window of HISTORY_EVERY steps, one row per window.
    history: Float[Array, "windows networks"]
    step: Array


def first_state(
    params: tuple[PyTree[Array], ...], optimiser: optax.GradientTransformation, steps: int, decays: int
) -> State:
    """The state before the first of `steps` steps, with averages of `decays` different decays."""
    windows = -(-steps // HISTORY_EVERY)
    return State(
        # Copies, because a step donates its state and the caller's networks stay the caller's.
        params=jax.tree.map(jnp.copy, params),
        averages=jax.tree.map(jnp.copy, (params,) * decays),
        optimiser=tuple(optimiser.init(p) for p in params),
        history=jnp.zeros((windows, len(params))),
        step=jnp.asarray(0),
    )


def make_optimiser(training: Training, steps: int, peak: float) -> optax.GradientTransformation:
    """Adam with clipped gradients; the rate rises in a line to its peak and falls as a cosine."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak, min(training.warmup_steps, steps // 2), steps, end_value=_LAST_RATE * peak
    )
    return optax.chain(optax.clip_by_global_norm(training.clip_norm), optax.adam(schedule))


def _gradient(
    loss_fn: Callable, params: PyTree, static: PyTree, batch: PyTree, parts: int
) -> tuple[Float[Array, ""], PyTree]:
    """The loss of a batch and its gradient, accumulated over this number of parts."""
    if parts == 1:
        return jax.value_and_grad(loss_fn)(params, static, *batch)
    # Each part has every `parts`-th image, so that every device has some of it.
    divided = jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), batch)

    def add(total: PyTree, part: PyTree) -> tuple[PyTree, None]:
        found = jax.value_and_grad(loss_fn)(params, static, *part)
        return jax.tree.map(lambda a, b: a + b / parts, total, found), None

    nothing = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
    return jax.lax.scan(add, nothing, divided)[0]


def make_step(
    config: Config, static: tuple[PyTree, ...], optimiser: optax.GradientTransformation, mesh: Mesh
) -> Callable:
    """The compiled function `((images, labels, teacher), state) -> (state, losses)`, which donates the state."""
    training = config.training

    def evaluate(network, x, noise_level, labels):
        if training.precision != "float32":
            network = MixedPrecision(network, training.precision)
        return network(x, noise_level, labels)

    def loss_fn(params, static_, x, noise_level, labels, target):
        out = evaluate(eqx.combine(params, static_), x, noise_level, labels)
        return jnp.mean((out - target) ** 2)

    def inputs_and_target(images, labels, teacher, key):
        log_normal = None if teacher is None else training.match_log_normal
        x, noise_level, target = noised(config, images, key, log_normal=log_normal)
        if config.classes is not None:
            # The next key after the two that `noised` splits off.
            labels = drop_labels(labels, config.classes, training.label_dropout, jr.fold_in(key, 2))
        if teacher is not None:
            target = evaluate(teacher, x, noise_level, labels)
        return x, noise_level, labels, target

    @eqx.filter_jit(donate="all-except-first")
    def step_fn(inputs, state: State) -> tuple[State, Float[Array, " networks"]]:
        key = jr.fold_in(jr.key(training.seed + 1), state.step)
        images, labels, teacher = inputs
        batch = inputs_and_target(images, labels, teacher, key)
        params, opt_state, losses = [], [], []
        for p, static_, opt in zip(state.params, static, state.optimiser, strict=True):
            loss, grads = _gradient(loss_fn, p, static_, batch, training.accumulate)
            # optax mixes dtypes and ranks inside, whatever the user has forbidden.
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                updates, opt = optimiser.update(grads, opt, p)
            p = optax.apply_updates(p, updates)
            params.append(p)
            opt_state.append(opt)
            losses.append(loss)
        losses = jnp.stack(losses)
        history = _with_losses(state, losses)
        averages: Any = tuple(
            optax.incremental_update(tuple(params), average, 1 - _decay(decay, state.step))
            for average, decay in zip(state.averages, training.ema_decays, strict=True)
        )
        new = State(tuple(params), averages, tuple(opt_state), history, state.step + 1)
        # Gradients are summed over the devices, each of which has a part of the batch.
        return keep_everywhere(mesh, (new, losses))

    return step_fn


def _decay(decay: float, step: Array) -> Array:
    """Of an average at a step. Early ones forget the initial parameters quickly."""
    t = step.astype(jnp.result_type(float))
    return jnp.minimum(decay, (1 + t) / (10 + t))


def _with_losses(state: State, losses: Float[Array, " networks"]) -> Float[Array, "windows networks"]:
    """The history with one more step in the mean of its window."""
    window, seen = jnp.divmod(state.step, HISTORY_EVERY)
    mean = state.history[window]
    return state.history.at[window].set(mean + (losses - mean) / (seen + 1).astype(mean.dtype))
