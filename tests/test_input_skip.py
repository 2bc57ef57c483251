"""The path from input to output of narrow networks: full rank, gains per scale, and no change to wide networks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import randomised

from mlem_jax.diffusion import Config, DiTLevel, InputSkip, Level, load_ladder, UNet
from mlem_jax.diffusion._ladder import ladder_of_flops

SHAPE, SMALL = (16, 16, 3), (8, 8, 3)
# Both are narrower than the numbers of a folded square of pixels.
PRESET = ladder_of_flops(SHAPE, [0.06, 0.5]).levels
ONE_GRID = {"folds": (2,), "multipliers": (1,), "blocks": (1,)}
LEVELS = {
    "0.06 MFLOP": (PRESET[0], SHAPE),
    # As wide as the 12 numbers of a folded square, of which the norm takes one.
    "UNet": (Level(12, **ONE_GRID), SMALL),
    "DiT": (DiTLevel(24, patch=4, depth=1), SMALL),
}


def rank(level, shape):
    """Rank of the Jacobian of the network's output, v, with respect to its input at s = 0.05; nothing is at its
    initial value. Singular values of full Jacobians go down to 5e-5, of others to 1e-6 (the small constant in the
    norm) and then 1e-15, in double precision."""
    network = randomised(level.network(shape, None, key=jr.key(0)))
    x = jr.normal(jr.key(1), shape)
    jacobian = jax.jit(jax.jacfwd(lambda x: network(x, jnp.log(0.05))))(x)
    return np.linalg.matrix_rank(np.reshape(jacobian, (x.size, x.size)), tol=1e-5)


@pytest.mark.parametrize(
    "level, shape",
    [*LEVELS.values(), pytest.param(PRESET[1], SHAPE, marks=pytest.mark.slow)],
    ids=[*LEVELS.keys(), "0.5 MFLOP"],
)
def test_the_jacobian_of_a_narrow_network_has_full_rank(level, shape, x64):
    assert rank(level, shape) == np.prod(shape)


def test_without_the_path_narrow_networks_are_of_the_rank_of_their_last_layer(x64):
    # Places times channels, of which the norm takes one.
    assert rank(Level(12, input_skip=False, **ONE_GRID), SMALL) == 4 * 4 * (12 - 1)
    assert rank(Level(20, **ONE_GRID), SMALL) == 8 * 8 * 3


def test_networks_have_the_path_exactly_where_they_are_too_narrow():
    levels = (Level(12), Level(13), DiTLevel(48), DiTLevel(52), Level(12, input_skip=False))
    networks = eqx.filter_eval_shape(Config("a", SHAPE, levels).networks)
    assert [network.input_skip is not None for network in networks] == [True, False, True, False, False]
    # The shipped networks were trained before there was such a path; the first is 16 wide for 16 pixels.
    shipped = load_ladder()
    assert all(network.input_skip is None for network in shipped.networks)
    assert [level.input_skip for level in shipped.config.levels] == [False, None, None, None]


def test_the_rest_of_a_network_does_not_depend_on_the_path():
    with_, without = (UNet((4, 4, 1), 8, input_skip=flag, key=jr.key(0)) for flag in (True, False))
    x = jr.normal(jr.key(1), (4, 4, 1))
    # Gains begin at zero.
    np.testing.assert_array_equal(with_(x, jnp.asarray(0.3)), without(x, jnp.asarray(0.3)))


def test_each_scale_is_scaled_by_the_sum_of_the_gains_down_to_it():
    skip = InputSkip(2, 6, 3, key=jr.key(0))
    # Squares of 1, 2 and 6 pixels; one embedding for each of two images.
    gains = jnp.array([[1.0, 10.0, 2.0, 20.0, 4.0, 40.0], [3.0, 30.0, 5.0, 50.0, 7.0, 70.0]])
    weight = jnp.zeros((3, 6)).at[:2].set(gains)
    skip = eqx.tree_at(lambda s: s.gains.weight, skip, weight)
    random = np.random.default_rng(0).normal(size=(2, 12, 6, 2)).astype(np.float32)

    def means(x, side):
        blocks = x.reshape(2, 12 // side, side, 6 // side, side, 2).mean((2, 4))
        return np.repeat(np.repeat(blocks, side, 1), side, 2)

    coarsest, finer = means(random, 6), means(random, 2)
    parts = {"coarsest": coarsest, "middle": finer - coarsest, "finest": random - finer}
    expected = {
        "coarsest": [[7.0, 70.0], [15.0, 150.0]],
        "middle": [[3.0, 30.0], [8.0, 80.0]],
        "finest": [[1.0, 10.0], [3.0, 30.0]],
    }
    for name, part in parts.items():
        out = skip(jnp.asarray(part), jnp.eye(3)[:2])
        factor = np.array(expected[name])[:, None, None, :]
        np.testing.assert_allclose(out, factor * part, rtol=1e-5, atol=2e-5)
