"""The UNet: what it computes does not depend on how it is called, its cost scales as promised, and it says
what is wrong with an image or with its own sizes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import randomised
from problems import as_user

from mlem_jax.diffusion import UNet
from mlem_jax.diffusion._ladder import count_flops
from mlem_jax.diffusion._network import depth_to_space, space_to_depth
from mlem_jax.diffusion._network.conv import Conv
from mlem_jax.diffusion._network.unet import ResidualBlock

SHAPE = (8, 12, 2)
# Grids of 4 x 6 and 2 x 3, so that kernels reach over the edge on every side.
NETWORK = randomised(UNet(SHAPE, 4, folds=(2, 2), multipliers=(1, 2), blocks=(1, 2), key=jr.key(0)))
X = jr.normal(jr.key(1), (5, *SHAPE))
LEVELS = jnp.linspace(-4.0, 4.0, 5)
# Compiled as a whole, which is faster than operation by operation.
run = eqx.filter_jit(NETWORK)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_one_image_a_batch_and_a_vmap_agree():
    batch = run(X, LEVELS)
    assert batch.shape == X.shape and batch.dtype == X.dtype
    # Not the trivial agreement of a network that returns nearly nothing.
    assert jnp.std(batch) > 0.1
    close(jnp.stack([run(x, level) for x, level in zip(X, LEVELS, strict=True)]), batch)
    close(jax.vmap(run)(X, LEVELS), batch)
    close(jax.vmap(run, in_axes=(0, None))(X, LEVELS[1])[2], run(X[2], LEVELS[1]))


def test_one_noise_level_for_all_is_that_level_for_each():
    each = run(X, jnp.full(5, 0.7))
    close(run(X, jnp.asarray(0.7)), each)
    assert jnp.max(jnp.abs(run(X, jnp.asarray(-2.0)) - each)) > 0.1


@pytest.mark.slow
def test_bfloat16_network_is_the_float32_one_to_its_precision():
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), NETWORK)
    out = narrow(X.astype(jnp.bfloat16), LEVELS)
    assert out.dtype == jnp.bfloat16
    difference = out.astype(jnp.float32) - run(X, LEVELS)
    assert jnp.std(difference) < 0.05 * jnp.std(run(X, LEVELS))


def test_residual_blocks_are_the_identity_before_training():
    block = ResidualBlock(6, 8, key=jr.key(0))
    x, embedding = jr.normal(jr.key(1), (2, 4, 4, 6)), jr.normal(jr.key(2), (2, 8))
    np.testing.assert_array_equal(block(x, embedding), x)
    assert jnp.max(jnp.abs(randomised(block)(x, embedding) - x)) > 0.1


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (7, 7)])
def test_unfolded_convolution_is_the_convolution_and_that_its_definition(grid):
    plain, unfolded = (
        randomised(Conv(3, 5, unfold=unfold, key=jr.key(0)), seed=1) for unfold in (False, True)
    )
    x = jr.normal(jr.key(2), (2, *grid, 3))
    close(unfolded(x), plain(x))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    i, j = grid[0] - 1, grid[1] // 2
    window = padded[:, i : i + 3, j : j + 3]
    close(plain(x)[:, i, j], np.einsum("nabc,abcd->nd", window, plain.weight) + plain.bias[None, :])


def test_folding_puts_each_square_of_pixels_into_the_channels_and_back():
    folded = space_to_depth(X, 2)
    np.testing.assert_array_equal(folded[:, 1, 2].reshape(5, 2, 2, 2), X[:, 2:4, 4:6])
    np.testing.assert_array_equal(depth_to_space(folded, 2), X)


@pytest.mark.slow
def test_a_one_by_one_grid_is_a_dense_network():
    network = randomised(UNet((4, 4, 1), 8, folds=(2, 2), multipliers=(1, 2), blocks=(0, 1), key=jr.key(0)))
    assert network.down[1][0].conv1.weight.shape[:2] == (1, 1)
    x = jr.normal(jr.key(1), (4, 4, 1))
    jacobian = jax.jacobian(lambda x: network(x, jnp.asarray(0.3)))(x).reshape(16, 16)
    assert np.all(np.abs(jacobian) > 0), "some pixel does not see some other"


@pytest.mark.slow
def test_flops_and_parameters_grow_as_the_square_of_the_width():
    # Grids of 20 and 10: on small ones the narrow convolutions are unfolded, and XLA counts the padding then.
    networks = [UNet((40, 40, 1), width, key=jr.key(0)) for width in (16, 32, 64)]
    flops = np.array([count_flops(network) for network in networks])
    sizes = np.array([sum(x.size for x in jax.tree.leaves(network)) for network in networks])
    # The share of normalisation and activations is of first order in the width.
    assert np.all((3.5 < flops[1:] / flops[:-1]) & (flops[1:] / flops[:-1] < 4.05))
    assert np.all((3.8 < sizes[1:] / sizes[:-1]) & (sizes[1:] / sizes[:-1] < 4.05))


@pytest.mark.slow
def test_counted_flops_are_two_per_weight_and_place():
    # One resolution on 7 x 7 = 49 places: every convolution's weight is used at each of them.
    network = UNet((28, 28, 1), 64, folds=(4,), multipliers=(1,), blocks=(2,), key=jr.key(0))
    convolutions = [network.stem, network.head]
    convolutions += [conv for block in network.down[0] + network.up[0] for conv in (block.conv1, block.conv2)]
    expected = sum(2 * 49 * conv.weight.size for conv in convolutions)
    # Padding makes border taps cheaper in XLA's count, norms and activations add a little.
    assert 0.8 < count_flops(network) / expected < 1.1


def test_the_same_key_gives_the_same_network_and_another_key_another():
    a, b, c = (
        UNet((4, 4, 1), 4, folds=(4,), multipliers=(1,), blocks=(1,), key=jr.key(k)) for k in (0, 0, 1)
    )
    assert eqx.tree_equal(a, b)
    assert not eqx.tree_equal(a, c)


@pytest.mark.parametrize(
    "x, level, message",
    [
        (jnp.zeros((12, 8, 2)), 0.0, r"shape \(8, 12, 2\) \(height, width, channels\).*shape \(12, 8, 2\)"),
        (jnp.zeros((3, 8, 12, 1)), 0.0, r"was given an array of shape \(3, 8, 12, 1\)"),
        (X, [0.0, 1.0], r"noise levels of shape \(2,\); one for all, shape \(\), or one per image"),
        (X[0], [0.0, 1.0], r"images of shape \(8, 12, 2\) with noise levels of shape \(2,\)"),
    ],
    ids=["transposed", "channels", "too few noise levels", "noise levels without batch"],
)
def test_images_and_noise_levels_of_another_shape(x, level, message):
    with pytest.raises(ValueError, match=message):
        NETWORK(x, jnp.asarray(level))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(folds=(2, 4)), "images of 8 x 12 with folds=.2, 4., which needs sides .* multiples of 8"),
        (dict(blocks=(1,)), r"one entry per resolution.*folds=\(2, 2\).*blocks=\(1,\)"),
        (dict(folds=(), multipliers=(), blocks=()), "one entry per resolution"),
        (dict(width=0), "width=0; a positive integer is expected"),
        (dict(multipliers=(1, 0)), r"multipliers=\(1, 0\); a list of integers of at least 1"),
        (dict(blocks=(1, -1)), r"blocks=\(1, -1\); a list of integers of at least 0"),
        (dict(shape=(8, 12)), r"shape=\(8, 12\); \(height, width, channels\) is expected"),
    ],
    ids=lambda x: ",".join(x) if isinstance(x, dict) else "",
)
def test_sizes_that_make_no_network(arguments, message):
    settings = dict(shape=SHAPE, width=4, folds=(2, 2), multipliers=(1, 2), blocks=(1, 1), key=jr.key(0))
    with as_user(), pytest.raises(ValueError, match=message):
        UNet(**(settings | arguments))
