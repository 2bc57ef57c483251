"""What UNet and DiT share, labels above all; attention, patches, mixed precision, and the counts of both."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusion_problems import randomised
from problems import as_user

from mlem_jax.diffusion import DiT, Guided, MixedPrecision, NoisePredictor, UNet, VariancePreserving
from mlem_jax.diffusion._ladder import count_flops, count_parameters
from mlem_jax.diffusion._ladder.sizes import count_predictor_flops
from mlem_jax.diffusion._network.attention import Attention
from mlem_jax.diffusion._network.dit import DiTBlock
from mlem_jax.diffusion._network.unet import AttentionBlock

SHAPE, CLASSES = (8, 12, 2), 3
X = jr.normal(jr.key(1), (4, *SHAPE))
LEVELS, LABELS = jnp.linspace(-3.0, 3.0, 4), jnp.array([0, 1, 2, CLASSES])


def unet(**settings):
    sizes = dict(folds=(4,), multipliers=(1,), blocks=(1,), attention=(True,))
    return UNet(SHAPE, 8, **{**sizes, **settings}, key=jr.key(0))


def dit(**settings):
    return DiT(SHAPE, 8, **{**dict(patch=4, depth=1, heads=2), **settings}, key=jr.key(0))


NETWORKS = {"unet": randomised(unet(classes=CLASSES)), "dit": randomised(dit(classes=CLASSES))}
every_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())


@eqx.filter_jit
def run(network, x, level, label=None):
    """Compiled at once, which is faster than operation by operation."""
    return network(x, level, label)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@every_network
def test_one_image_a_batch_and_a_vmap_agree(network):
    batch = run(network, X, LEVELS, LABELS)
    assert batch.shape == X.shape and jnp.std(batch) > 0.1
    close(eqx.filter_jit(eqx.filter_vmap(network))(X, LEVELS, LABELS), batch)
    # One label for all is that label for each.
    each = [run(network, X, LEVELS, jnp.full(4, k)) for k in range(4)]
    close(run(network, X, LEVELS, jnp.asarray(2)), each[2])
    assert all(jnp.max(jnp.abs(each[k] - each[2])) > 0.05 for k in (0, 1, 3))


@every_network
def test_the_null_label_is_what_guidance_of_scale_0_does(network):
    given, unconditional = (run(network, X, LEVELS, label) for label in (LABELS, jnp.full(4, CLASSES)))
    for scale in jnp.array([0.0, 3.0]):
        expected = unconditional + scale * (given - unconditional)
        close(run(Guided(network, scale, CLASSES), X, LEVELS, LABELS), expected)


@pytest.mark.parametrize("make", [unet, dit])
def test_a_label_whose_row_is_zero_is_a_network_without_labels(make):
    # The other parameters do not depend on whether there are classes.
    without, labelled = make(), make(classes=CLASSES)
    blank = eqx.tree_at(
        lambda n: n.embedding.labels, labelled, jnp.zeros((CLASSES + 1, 16 if make is unet else 8))
    )
    assert without.embedding.labels is None
    leaves = jax.tree.leaves(eqx.tree_at(lambda n: n.embedding.labels, labelled, None))
    for a, b in zip(jax.tree.leaves(without), leaves, strict=True):
        np.testing.assert_array_equal(a, b)
    close(run(blank, X, LEVELS, LABELS), run(without, X, LEVELS))


@every_network
@pytest.mark.parametrize(
    "label, message",
    [
        (None, r"needs a label and was given none. .*args=labels.*from 0 to 2, or 3 for no label"),
        (4, r"3 classes was given labels from 4 to 4; 0 to 2 are expected, or 3 for no label"),
        (jnp.array([0, -1, 1, 2]), r"labels from -1 to 2; 0 to 2"),
        (jnp.array([0, 1]), r"labels of shape \(2,\) and type int32; an integer for all"),
        (0.5, r"labels of shape \(\) and type float32; an integer"),
    ],
    ids=["missing", "too large", "negative", "too few", "not an integer"],
)
def test_labels_that_are_wrong(network, label, message):
    with pytest.raises(ValueError, match=f"{type(network).__name__} .*{message}"):
        network(X, LEVELS, label)


def test_a_label_out_of_range_in_compiled_code_is_not_another_label():
    out = run(NETWORKS["dit"], X, LEVELS, jnp.array([4, -1, 3, 0]))
    np.testing.assert_array_equal(jnp.isnan(out).all((1, 2, 3)), [True, True, False, False])
    assert jnp.isfinite(out[2:]).all()


def test_a_label_of_no_use():
    with pytest.raises(ValueError, match=r"This DiT was built without classes and was given a label. Leave"):
        dit()(X, LEVELS, LABELS)


# Attention.


def test_attention_is_the_softmax_written_out():
    heads, size = 3, 4
    attention = randomised(Attention(heads * size, heads, key=jr.key(0)))
    x = jr.normal(jr.key(1), (2, 5, heads * size))
    weight = np.asarray(attention.query_key_value.weight, float)
    projected = np.asarray(x, float) @ weight + np.asarray(attention.query_key_value.bias)
    mixed = np.zeros(x.shape)
    for h in range(heads):
        query, key, value = (projected[..., 12 * i + size * h :][..., :size] for i in range(3))
        scores = np.exp(np.einsum("nqd,nkd->nqk", query, key) / np.sqrt(size))
        mixed[..., size * h : size * (h + 1)] = scores / scores.sum(-1, keepdims=True) @ value
    close(
        jax.jit(attention.__call__)(x),
        mixed @ np.asarray(attention.out.weight, float) + np.asarray(attention.out.bias),
    )


def test_attention_in_a_unet_begins_as_nothing_and_then_joins_all_places():
    block = AttentionBlock(6, key=jr.key(0))
    x = jr.normal(jr.key(1), (1, 2, 3, 6))
    np.testing.assert_array_equal(eqx.filter_jit(block)(x), x)
    gradient = jax.jit(jax.grad(lambda x: randomised(block)(x)[0, 0, 0, 0]))(x)
    assert np.all(np.abs(gradient).max(-1) > 0)
    # The rest of the network is the same with and without it.
    np.testing.assert_array_equal(run(unet(), X, LEVELS), run(unet(attention=None), X, LEVELS))


# Patches.


def test_patches_are_cut_and_put_back():
    # Every layer the identity: what is left is the norm of each patch.
    network = dit(patch=2)
    eye = jnp.eye(8)
    network = eqx.tree_at(
        lambda n: (n.stem.weight, n.head.weight, n.positions), network, (eye, eye, jnp.zeros((24, 8)))
    )
    out = run(network, X, LEVELS)
    for i, j in ((0, 0), (2, 6), (6, 10)):
        patch = np.asarray(X[:, i : i + 2, j : j + 2])
        norm = np.sqrt(np.mean(patch**2, axis=(1, 2, 3), keepdims=True))
        close(out[:, i : i + 2, j : j + 2], patch / norm)


def test_a_dit_knows_places_by_their_vectors_only():
    network = randomised(dit())
    order = jnp.array([4, 2, 0, 1, 5, 3])

    def permuted(x):
        patches = x.reshape(-1, 2, 4, 3, 4, 2).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 6, 4, 4, 2)[:, order]
        return patches.reshape(-1, 2, 3, 4, 4, 2).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)

    moved = eqx.tree_at(lambda n: n.positions, network, network.positions[order])
    expected = permuted(run(network, X, LEVELS))
    close(run(moved, permuted(X), LEVELS), expected)
    assert jnp.max(jnp.abs(run(network, permuted(X), LEVELS) - expected)) > 0.05


def test_a_dit_begins_at_zero_with_blocks_that_are_the_identity():
    np.testing.assert_array_equal(run(dit(), X, LEVELS), jnp.zeros_like(X))
    block = DiTBlock(6, 2, key=jr.key(0))
    x = jr.normal(jr.key(1), (2, 5, 6))
    np.testing.assert_array_equal(eqx.filter_jit(block)(x, jr.normal(jr.key(2), (2, 6))), x)


# Counts.


def test_counted_flops_are_two_per_weight_and_place_and_four_per_pair_of_places():
    width, depth, places = 64, 2, 49
    network = DiT((28, 28, 1), width, patch=4, depth=depth, heads=4, classes=10, key=jr.key(0))
    # Per block and place: 4 width**2 of the attention's weights and 8 of the dense network's; once: 6 of modulation.
    weights = places * (12 * width**2 * depth + 2 * 16 * width) + 6 * width**2 * depth
    expected = 2 * weights + 4 * places**2 * width * depth
    # Norms, softmax and activations add a little.
    assert 1 < count_flops(network) / expected < 1.2
    # Guidance evaluates all of it twice but for what comes before the label.
    assert 1.95 < count_flops(network, guided=True) / count_flops(network) <= 2.02
    shapes = eqx.filter_eval_shape(lambda: network)
    assert count_flops(shapes) == count_flops(network)
    assert (
        count_parameters(shapes) == sum(x.size for x in jax.tree.leaves(network)) == count_parameters(network)
    )


def test_flops_are_counted_where_the_default_backend_does_not_count(monkeypatch):
    """Clients of GPUs and TPUs return `None` for a program that is not compiled (seen on an H100 with jax 0.11.2).
    Here a device stands in for them: it counts nothing unless a CPU was asked for."""
    counts = jax.stages.Lowered.cost_analysis

    def as_on_a_gpu(lowered):
        device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
        return counts(lowered) if device is not None and device.platform == "cpu" else None

    predictor = NoisePredictor(unet(), VariancePreserving())
    expected = count_flops(unet()), count_predictor_flops(predictor, SHAPE, None)
    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", as_on_a_gpu)
    assert (count_flops(unet()), count_predictor_flops(predictor, SHAPE, None)) == expected
    monkeypatch.setattr(jax, "local_devices", no_cpu)
    with pytest.raises(RuntimeError, match="JAX_PLATFORMS=cuda,cpu"):
        count_flops(unet())


def no_cpu(*, backend):
    raise RuntimeError(f"Unknown backend {backend}")


# Precision.


@pytest.mark.slow
@every_network
def test_bfloat16_is_close_and_parameters_and_gradients_stay_wide(network):
    mixed = MixedPrecision(network, "bfloat16")

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def with_gradient(network):
        out = network(X, LEVELS, LABELS)
        return jnp.mean(out**2), out

    ((_, out), grads), ((_, exact), exact_grads) = with_gradient(mixed), with_gradient(network)
    assert out.dtype == jnp.float32 and mixed.shape == SHAPE and mixed.classes == CLASSES
    error = float(jnp.std(out - exact) / jnp.std(exact))
    # A rounding of 2**-9 in every operation, seen.
    assert 1e-4 < error < 0.05
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((mixed, grads)))
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in (grads, exact_grads))
    assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)


def test_the_noise_level_is_not_rounded():
    # Two that are one number in bfloat16.
    network = MixedPrecision(NETWORKS["dit"])
    near = [run(network, X, jnp.full(4, level), LABELS) for level in (3.001, 3.007)]
    assert jnp.any(near[0] != near[1])


def test_a_type_that_is_not_floating():
    with pytest.raises(ValueError, match="dtype=int8; a floating type is expected, such as 'bfloat16'"):
        MixedPrecision(NETWORKS["dit"], "int8")


# Sizes.


@pytest.mark.parametrize(
    "make, arguments, message",
    [
        (
            dit,
            dict(patch=3),
            r"DiT was given images of 8 x 12 with patch=3, which needs sides .* multiples of 3",
        ),
        (dit, dict(heads=3), r"width=8 with heads=3; a width that is a multiple of heads .* for example 9"),
        (dit, dict(depth=0), "DiT was given depth=0; a positive integer is expected"),
        (dit, dict(classes=0), "DiT was given classes=0; a positive integer"),
        (unet, dict(classes=True), "UNet was given classes=True; a positive integer"),
        (unet, dict(attention=(1,)), r"attention=\(1,\) for 1 resolutions; true or false for each"),
        (unet, dict(attention=(True, False)), r"attention=\(True, False\) for 1 res.*for example \[True\]"),
    ],
    ids=lambda x: ",".join(x) if isinstance(x, dict) else "",
)
def test_sizes_that_make_no_network(make, arguments, message):
    with as_user(), pytest.raises(ValueError, match=message):
        make(**arguments)
