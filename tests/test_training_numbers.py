"""What a step of training computes, by closed forms."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from diffusion_problems import tiny_config

from mlem_jax.diffusion._training import train_networks
from mlem_jax.diffusion._training.step import _with_losses, first_state, HISTORY_EVERY, make_optimiser


def test_the_history_has_the_mean_of_each_window():
    # Losses 0, 1, 2, ... of one network and their squares of another; the last window is not full.
    steps = 2 * HISTORY_EVERY + 3
    state = first_state(({}, {}), optax.sgd(0.1), steps, decays=1)
    rows = np.stack([np.arange(steps), np.arange(steps) ** 2], axis=1).astype(np.float32)

    def one(state, row):
        history = _with_losses(state, row)
        return state.__class__(state.params, state.averages, state.optimiser, history, state.step + 1), None

    found, _ = jax.lax.scan(one, state, jnp.asarray(rows))
    windows = np.split(rows, [HISTORY_EVERY, 2 * HISTORY_EVERY])
    np.testing.assert_allclose(found.history, [window.mean(0) for window in windows], rtol=1e-4)


def test_rates_rise_to_the_peak_and_fall_to_a_hundredth():
    # Of a constant gradient Adam's step is the learning rate itself, whatever the gradient's length.
    optimiser, steps = make_optimiser(tiny_config(warmup_steps=10).training, 110, 1e-2), 110
    params = {"w": jnp.zeros(())}
    state, rates = optimiser.init(params), []
    for _ in range(steps + 1):
        with jax.numpy_dtype_promotion("standard"):
            update, state = optimiser.update({"w": jnp.asarray(0.5)}, state, params)
        rates.append(-float(update["w"]))
    assert (
        rates[0] == 0
        and rates[5] == pytest.approx(5e-3, rel=1e-3)
        and rates[10] == pytest.approx(1e-2, rel=1e-3)
    )
    assert rates[60] == pytest.approx(1e-2 * (1 + 0.01) / 2, rel=1e-3)
    assert rates[110] == pytest.approx(1e-4, rel=1e-2)


def test_a_large_gradient_is_clipped():
    # One of a million times the others counts as one of length clip_norm: as if it had been that long.
    training = tiny_config().training
    found = []
    for spike in (1e6, training.clip_norm):
        optimiser, params = make_optimiser(training, 100, 1e-2), {"w": jnp.zeros(2)}
        state = optimiser.init(params)
        for size in [0.1, 0.1, spike, 0.1]:
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                update, state = optimiser.update({"w": jnp.array([size, 0.0])}, state, params)
        found.append(float(update["w"][0]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.slow
def test_every_step_has_noise_of_its_own(tmp_path):
    # A network that is zero and black images: the loss is the mean square of alpha eps - sigma x0 with x0 = 0, that is
    # alpha^2 on average over the process's own noise levels; each step draws others.
    config = tiny_config()
    zero = jax.tree.map(jnp.zeros_like, config.networks()[:1])
    steps, black = 4 * HISTORY_EVERY, np.zeros((32, 4, 4, 1), np.float32)
    _, history = train_networks(
        config,
        zero,
        black,
        tmp_path,
        steps=steps,
        peak_learning_rate=1e-30,
        progress=False,
    )
    squares = config.process.alpha(config.process.draw_s(jr.key(7), (20_000,))) ** 2
    # Of 16 pixels and 8 images a step: the level's variance over images, the noise's over pixels.
    variance = float(jnp.var(squares) + jnp.mean(squares**2) * 2 / 16) / (8 * HISTORY_EVERY)
    score = (np.asarray(history)[:, 0] - float(jnp.mean(squares))) / np.sqrt(variance)
    assert np.all(np.abs(score) < 5), score
    assert len(set(np.asarray(history)[:, 0].tolist())) == 4
