"""GridBrownianPath: one path for all step sizes and directions, the law of its increments, its gradients
under every adjoint, and what it refuses."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import assert_mean, solve

import mlem_jax as ml

UNEQUAL = jnp.linspace(0, 2, 33) ** 2
T1 = diffrax.SaveAt(t1=True)


@eqx.filter_jit
def increments(path, ts):
    """The path between neighbouring times."""
    return jax.vmap(path.evaluate)(ts[:-1], ts[1:])


@pytest.fixture(scope="module")
def path():
    return ml.GridBrownianPath(UNEQUAL, (3,), key=jr.key(0))


@pytest.fixture(scope="module")
def fine(path):
    return increments(path, UNEQUAL)


@pytest.mark.parametrize("times", [[0, 1, 32], [0, 8, 16, 24, 32], [3, 4, 9, 31]])
def test_coarse_steps_see_the_same_path(path, fine, times):
    coarse = increments(path, UNEQUAL[np.array(times)])
    sums = [fine[a:b].sum(0) for a, b in zip(times, times[1:], strict=False)]
    np.testing.assert_allclose(coarse, np.stack(sums), rtol=1e-5, atol=1e-6)


def test_backward_increments_are_the_negative_ones(path, fine):
    np.testing.assert_array_equal(increments(path, UNEQUAL[::-1]), -fine[::-1])
    np.testing.assert_array_equal(path.evaluate(UNEQUAL[5], UNEQUAL[5]), np.zeros(3))


def test_one_time_is_counted_from_the_first_grid_point(path, fine):
    np.testing.assert_allclose(path.evaluate(UNEQUAL[12]), fine[:12].sum(0), rtol=1e-5, atol=1e-6)
    assert (float(path.t0), float(path.t1)) == (0.0, 4.0)


def test_a_decreasing_grid_is_the_same_path(path, fine):
    decreasing = ml.GridBrownianPath(UNEQUAL[::-1], (3,), key=jr.key(0))
    np.testing.assert_array_equal(increments(decreasing, UNEQUAL), fine)
    assert (float(decreasing.t0), float(decreasing.t1)) == (0.0, 4.0)


def test_increments_are_independent_normals_of_variance_dt():
    # Seed 1, 20000 paths, 5 standard errors: mean, variance, fourth moment 3 dt^2, and all covariances zero,
    # over time (a coarse step among them) and between entries.
    ts = UNEQUAL[np.array([0, 4, 5, 20, 32])]
    keys = jr.split(jr.key(1), 20_000)
    sample = jax.vmap(lambda key: increments(ml.GridBrownianPath(UNEQUAL, (2,), key=key), ts))(keys)
    dt = np.diff(ts)
    sample = np.asarray(sample, np.float64) / np.sqrt(dt)[:, None]
    assert_mean(sample, 0)
    assert_mean(sample**4, 3)
    flat = sample.reshape(-1, 8)
    assert_mean(flat[:, :, None] * flat[:, None, :], np.eye(8))


def test_pytree_leaves_have_paths_of_their_own():
    # Seed 2, 4000 paths, 5 standard errors.
    shape = {
        "a": jax.ShapeDtypeStruct((), jnp.float32),
        "b": (jax.ShapeDtypeStruct((2, 1), jnp.float16), jax.ShapeDtypeStruct((), jnp.float32)),
    }

    def one(key):
        return ml.GridBrownianPath(UNEQUAL, shape, key=key).evaluate(UNEQUAL[0], UNEQUAL[8])

    sample = jax.vmap(one)(jr.split(jr.key(2), 4000))
    assert jax.tree.structure(sample) == jax.tree.structure(shape)
    assert jax.tree.map(lambda x: (x.shape[1:], x.dtype), sample) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shape
    )
    flat = np.concatenate([np.asarray(x, np.float64).reshape(4000, -1) for x in jax.tree.leaves(sample)], 1)
    assert_mean(flat[:, :, None] * flat[:, None, :], float(UNEQUAL[8]) * np.eye(4))


def test_levy_form_is_diffraxs_own():
    shape = {"a": jax.ShapeDtypeStruct((2,), jnp.float32), "b": jax.ShapeDtypeStruct((), jnp.float32)}
    paths = [
        ml.GridBrownianPath(UNEQUAL, shape, key=jr.key(0)),
        diffrax.UnsafeBrownianPath(shape, jr.key(0)),
    ]
    ours, theirs = (path.evaluate(UNEQUAL[2], UNEQUAL[6], use_levy=True) for path in paths)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    np.testing.assert_array_equal(ours.dt["b"], theirs.dt["b"])
    np.testing.assert_array_equal(ours.W["a"], paths[0].evaluate(UNEQUAL[2], UNEQUAL[6])["a"])


def test_vmap_over_keys_is_a_path_for_each_key(path, fine):
    keys = jnp.stack([jr.key(5), jr.key(0)])
    both = jax.vmap(lambda key: increments(ml.GridBrownianPath(UNEQUAL, (3,), key=key), UNEQUAL))(keys)
    np.testing.assert_array_equal(both[1], fine)
    assert np.all(np.asarray(both[0]) != np.asarray(fine))


def test_coins_and_noise_of_one_key_are_independent():
    # A user may well have one key only. Constant increment 3, p = 1/5, 64 steps:
    # Var x = 1 + 9 (1/p - 1) / 64. Seed 3, 10000 trajectories, 5 standard errors; with the same random bits
    # in both it is a third of that.
    grid = jnp.linspace(0, 1, 65)
    term = ml.MultilevelTerm(lambda t, y, args: 0 * y, lambda t, y, args: 3 + 0 * y)

    @jax.jit
    @jax.vmap
    def end(key):
        noise = ml.GridBrownianPath(grid, (), key=key)
        terms = diffrax.MultiTerm(term, diffrax.ControlTerm(lambda t, y, args: 1.0, noise))
        solver = ml.MLEM([1.0, 0.2], coins=ml.NestedCoins(), key=key, shared=False)
        return solve(terms, solver, jnp.array(0.0), steps=64, saveat=T1).ys[0]

    x = end(jr.split(jr.key(3), 10_000))
    assert_mean((np.asarray(x) - 3) ** 2, 1 + 9 * 4 / 64)


# --- gradients ---


@pytest.mark.slow
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_gradients_under_every_adjoint_are_those_of_a_plain_scan(backward, x64):
    # No adjoint refuses the path (as they do UnsafeBrownianPath), and all see the same noise.
    grid = jnp.linspace(0, 1, 17)
    ts = grid[::-1] if backward else grid
    path = ml.GridBrownianPath(grid, (), key=jr.key(4))
    w = jnp.stack([path.evaluate(ts[n], ts[n + 1]) for n in range(16)])
    x = jnp.array([0.7, 0.4, 1.1])

    def plain(x):
        def body(y, xs):
            t, h, dw = xs
            return y + h * (x[0] * y - t) + x[1] * jnp.sin(y) * dw, None

        return jax.lax.scan(body, x[2], (ts[:-1], jnp.diff(ts), w))[0]

    def end(x, adjoint):
        drift = ml.MultilevelTerm(lambda t, y, args: x[0] * y - t)
        diffusion = diffrax.ControlTerm(lambda t, y, args: x[1] * jnp.sin(y), path)
        terms = diffrax.MultiTerm(drift, diffusion)
        times = dict(t0=ts[0], t1=ts[-1], steps=16, max_steps=16, saveat=T1)
        return solve(terms, diffrax.Euler(), x[2], adjoint=adjoint, **times).ys[0]

    expected = jax.grad(plain)(x)
    gradient = jax.grad(end)(x, diffrax.RecursiveCheckpointAdjoint())
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)
    if not backward:
        np.testing.assert_allclose(jax.grad(end)(x, diffrax.DirectAdjoint()), expected, rtol=1e-10)
        forward = jax.jacfwd(lambda x: end(x, diffrax.ForwardMode()))(x)
        np.testing.assert_allclose(forward, expected, rtol=1e-10)


# --- what is refused ---


@pytest.mark.parametrize("times", [(0.0, 0.3), (-1.0, 0.25), (0.25, 1.5)], ids=["between", "before", "after"])
def test_times_off_the_grid_are_an_error(times):
    path = ml.GridBrownianPath(jnp.linspace(0, 1, 5), (), key=jr.key(0))
    with pytest.raises(
        RuntimeError, match=r"not on its grid. Let all steps begin and end.*StepTo\(ts\[::m\]\)"
    ):
        path.evaluate(*times)


def test_steps_off_the_grid_are_an_error():
    noise = ml.GridBrownianPath(jnp.linspace(0, 1, 5), (), key=jr.key(0))
    terms = diffrax.MultiTerm(
        ml.MultilevelTerm(lambda t, y, args: -y), diffrax.ControlTerm(lambda t, y, args: y, noise)
    )
    with pytest.raises(RuntimeError, match="not on its grid"):
        solve(terms, diffrax.Euler(), jnp.array(1.0), steps=3, saveat=T1)


def test_rounded_times_are_on_the_grid():
    # 1000 additions of 1e-3 in single precision end 1e-5 away from 1: a hundredth of a cell.
    noise = ml.GridBrownianPath(jnp.linspace(0, 1, 1001), (), key=jr.key(0))
    terms = diffrax.MultiTerm(
        ml.MultilevelTerm(lambda t, y, args: 0 * y), diffrax.ControlTerm(lambda t, y, args: 1.0, noise)
    )
    end = solve(terms, diffrax.Euler(), jnp.array(0.0), dt0=1e-3, saveat=T1).ys[0]
    np.testing.assert_allclose(end, noise.evaluate(0.0, 1.0), rtol=1e-4)


@pytest.mark.parametrize(
    "ts, shape, message",
    [
        ([0.0, 2.0, 1.0], (), "strictly increasing or strictly decreasing"),
        ([0.0, 1.0, 1.0], (), "strictly increasing or strictly decreasing"),
        ([0.0], (), r"given ts of shape \(1,\); times of shape \(N \+ 1,\) are expected"),
        ([[0.0, 1.0]], (), r"given ts of shape \(1, 2\); times of shape \(N \+ 1,\) are expected"),
        ([0.0, 1.0], jax.ShapeDtypeStruct((), jnp.int32), "floating-point shapes"),
    ],
)
def test_bad_grids_are_refused(ts, shape, message):
    with pytest.raises(ValueError, match=message):
        ml.GridBrownianPath(ts, shape, key=jr.key(0))
