"""Processes named in a ladder's file: what networks are trained to return is what sampling takes them to return."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import tiny_images
from problems import as_user
from sampling_problems import made_plan

from mlem_jax.diffusion import (
    EDM,
    FlowMatching,
    Ladder,
    read_config,
    sample,
    VarianceExploding,
    VariancePreserving,
)
from mlem_jax.diffusion._training import train_networks
from mlem_jax.diffusion._training.batches import noised

HEAD = 'name = "tiny"\nshape = [4, 4, 1]\n'
TRAINING = "[training]\nbatch_size = 64\nwarmup_steps = 5\nema_decay = 0.99\n"
LEVEL = TRAINING + "[[levels]]\nwidth = 32\nfolds = [4]\nmultipliers = [1]\nblocks = [1]\n"
KINDS = {
    "variance_preserving": (VariancePreserving(), "v"),
    "variance_exploding": (VarianceExploding(), "x0"),
    "edm": (EDM(), "x0"),
    "flow_matching": (FlowMatching(), "velocity"),
}


def read(tmp_path, text):
    path = tmp_path / "ladder.toml"
    path.write_text(text)
    with as_user():
        return read_config(path)


def config_of(kind, tmp_path):
    return read(tmp_path, HEAD + f'[process]\nkind = "{kind}"\n' + LEVEL)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_a_process_and_what_its_networks_return(kind, tmp_path):
    config = config_of(kind, tmp_path)
    assert (config.process, config.prediction) == KINDS[kind]
    narrower = read(tmp_path, HEAD + f'[process]\nkind = "{kind}"\ns_max = 40.0\n' + LEVEL)
    assert narrower.process == type(config.process)(s_max=40.0)


def test_kinds_and_predictions_that_do_not_exist_are_named(tmp_path):
    for process, message in (
        ('kind = "ddpm"', r"\[process\] of .* kind = 'ddpm'.*write one of .*'variance_exploding', 'edm'"),
        ("kind = 3", "kind = 3, which is not known"),
        (
            'kind = "edm"\nbetas = [0.1, 20.0]',
            r"has \['betas'\], which is not known; known are \['s_min', 's_max'\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path, HEAD + f"[process]\n{process}\n" + LEVEL)
    for kind in ("edm", "variance_exploding"):
        with pytest.raises(
            ValueError, match=r'prediction = \'v\' with .*write prediction = "x0", or leave it'
        ):
            read(tmp_path, HEAD + f'prediction = "v"\n[process]\nkind = "{kind}"\n' + LEVEL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "prediction"),
    [
        *((kind, None) for kind in KINDS),
        # The other two have a preconditioning, and with it no choice.
        *itertools.product(("variance_preserving", "flow_matching"), ("eps", "x0", "v", "velocity")),
    ],
)
def test_a_network_that_is_right_in_training_predicts_the_noise_in_sampling(kind, prediction, tmp_path, x64):
    """The network that returns the target for what it is given in training, image by image."""
    config = config_of(kind, tmp_path)
    if prediction is not None:
        config = dataclasses.replace(config, prediction=prediction)
    images = jnp.asarray(tiny_images(6), float)
    key = jr.key(3)
    given, conditioning, target = noised(config, images, key)
    # As `noised` draws them.
    key_s, key_eps = jr.split(key)
    s, eps = config.process.draw_s(key_s, (6,)), jr.normal(key_eps, images.shape)
    # A network sees an input of about the size of the data at every noise level.
    assert jnp.max(jnp.abs(given)) < 6

    def check(given, conditioning, target, image, s, eps):
        def network(x, c):
            return target + 10 * (x - given) + 10 * (c - conditioning)

        x = config.process.alpha(s) * image + config.process.sigma(s) * eps
        return config.predictor(network)(x, s) - eps

    found = jax.vmap(check)(given, conditioning, target, images, s, eps)
    np.testing.assert_allclose(found, 0, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["variance_exploding", "edm", "flow_matching"])
def test_trained_and_sampled_end_to_end(kind, tmp_path):
    """Images that are gradients: after training, samples lie near the two-dimensional space of gradients."""
    config = config_of(kind, tmp_path)
    (networks,), _ = train_networks(
        config,
        config.networks(),
        tiny_images(512),
        tmp_path / "run",
        steps=600,
        peak_learning_rate=1e-2,
        progress=False,
    )
    ladder = Ladder(networks, config, {}, {})
    plan = made_plan(levels=(0,), steps=24, process=config.process)
    drawn = sample(ladder, n=64, plan=plan, key=jr.key(0), progress=False).images.reshape(64, 16)
    ramp = np.linspace(-1, 1, 4)
    basis = np.stack([np.repeat(ramp, 4), np.tile(ramp, 4)]) / np.linalg.norm(np.repeat(ramp, 4))
    inside = drawn @ basis.T @ basis
    # White noise would have 7/8 of its square outside; data none.
    assert np.sum((drawn - inside) ** 2) < 0.05 * np.sum(drawn**2)
    data = np.mean(tiny_images(2000) ** 2)
    assert 0.5 * data < np.mean(drawn**2) < 2 * data
