"""Derivatives of solves, the coins held fixed: every adjoint against central differences and each other, with
respect to the state, the arguments and the levels' parameters; what is refused."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optimistix as optx
import pytest
from problems import mlem, POLICIES, solve

import mlem_jax as ml

KEY = jr.key(0)
T1 = diffrax.SaveAt(t1=True)


class Tanh(eqx.Module):
    weight: jax.Array

    def __call__(self, t, y, args):
        return jnp.tanh(self.weight @ y) - args * y


def everything():
    """Levels' weights, state and arguments, which all enter the result: 2 * 4 + 2 + 1 numbers."""
    weights = jr.normal(jr.key(1), (2, 2, 2))
    return [Tanh(0.8 * weights[0]), Tanh(weights[1])], jnp.array([1.0, -0.5]), jnp.array(0.3)


def loss(x, coins=POLICIES["stratified"], adjoint=None, p=(0.9, 0.3)):
    levels, y0, args = x
    noise = ml.GridBrownianPath(jnp.linspace(0, 1, 17), (), key=jr.key(2))
    diffusion = diffrax.ControlTerm(lambda t, y, args: 0.3 * y * args, noise)
    terms = diffrax.MultiTerm(ml.MultilevelTerm(*levels), diffusion)
    settings = dict(steps=16, args=args, saveat=T1, max_steps=16)
    if adjoint is not None:
        settings["adjoint"] = adjoint
    return jnp.sum(solve(terms, mlem(p, KEY, coins), y0, **settings).ys ** 2)


def flat(x):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(x)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stratified", "midpoint"])
def test_gradient_is_the_central_difference(name, x64):
    x, coins = everything(), POLICIES[name]
    gradient = jax.jit(jax.grad(lambda x: loss(x, coins)))(x)
    leaves, structure = jax.tree.flatten(x)
    value = jax.jit(lambda *leaves: loss(jax.tree.unflatten(structure, leaves), coins))
    # One random direction for each leaf: weights of either level, y0 and args. The difference's own error is
    # about 1e-12 + 1e-16 / 1e-6.
    for i, leaf in enumerate(leaves):
        direction = jr.normal(jr.key(i), leaf.shape)
        shifted = [value(*leaves[:i], leaf + s * 1e-6 * direction, *leaves[i + 1 :]) for s in (1, -1)]
        expected = (shifted[0] - shifted[1]) / 2e-6
        assert abs(expected) > 1e-3
        ours = jnp.vdot(jax.tree.leaves(gradient)[i], direction)
        np.testing.assert_allclose(ours, expected, rtol=1e-7)


@pytest.mark.slow
def test_adjoints_agree(x64):
    x = everything()
    checkpointed = flat(jax.grad(loss)(x))
    for adjoint in (diffrax.RecursiveCheckpointAdjoint(3), diffrax.DirectAdjoint()):
        np.testing.assert_allclose(
            flat(jax.grad(lambda x: loss(x, adjoint=adjoint))(x)),  # noqa: B023
            checkpointed,
            rtol=1e-10,
        )
    direction = jax.tree.map(jnp.ones_like, x)
    for adjoint in (diffrax.ForwardMode(), diffrax.DirectAdjoint()):
        forward = jax.jvp(lambda x: loss(x, adjoint=adjoint), (x,), (direction,))[1]  # noqa: B023
        np.testing.assert_allclose(forward, checkpointed.sum(), rtol=1e-10)


@pytest.mark.slow
def test_gradients_of_a_batch_are_those_of_its_members(x64):
    levels, y0, args = everything()
    batch = jnp.stack([y0, -y0, 2 * y0])
    together = jax.grad(lambda levels: jnp.sum(jax.vmap(lambda y0: loss((levels, y0, args)))(batch)))(levels)
    single = jax.jit(jax.grad(lambda levels, y0: loss((levels, y0, args))))
    np.testing.assert_allclose(flat(together), sum(flat(single(levels, y)) for y in batch), rtol=1e-10)


def test_a_level_that_never_runs_has_no_gradient(x64):
    gradient = jax.grad(lambda x: loss(x, POLICIES["midpoint"], p=(1.0, 1.0)))(everything())
    assert np.all(gradient[0][0].weight == 0) and np.all(gradient[0][1].weight != 0)


REFUSALS = {
    "array": lambda p: p,
    "callable": lambda p: lambda t: p,
    "rates": lambda p: ml.Rates(8 * p),
    "power law": lambda p: ml.PowerLaw(jnp.array([1.0, 5.0]), scale=p[0]),
    "table": lambda p: ml.TabulatedProbabilities(jnp.array([0.0, 1.0]), jnp.stack([p, p])),
}


@pytest.mark.parametrize("make", REFUSALS.values(), ids=REFUSALS.keys())
def test_gradients_with_respect_to_probabilities_are_refused(make):
    term = ml.MultilevelTerm(lambda t, y, args: -y, lambda t, y, args: -2 * y)

    def end(p):
        return jnp.sum(solve(term, ml.MLEM(make(p), key=KEY), jnp.ones(2), saveat=T1).ys)

    with pytest.raises(RuntimeError, match="cannot be differentiated with respect to its probabilities"):
        jax.grad(end)(jnp.array([0.9, 0.5]))


def test_forward_gradients_with_respect_to_probabilities_are_refused():
    def end(p):
        return loss(everything(), adjoint=diffrax.ForwardMode(), p=p)

    p = jnp.array([0.9, 0.5])
    with pytest.raises(RuntimeError, match="cannot be differentiated with respect to its probabilities"):
        jax.jvp(end, (p,), (p,))


def test_backsolve_refuses_with_what_to_use_instead():
    term = ml.MultilevelTerm(lambda t, y, args: -y, lambda t, y, args: -2 * y)

    def end(y0, adjoint):
        return jnp.sum(solve(term, mlem((1.0, 0.5), KEY), y0, saveat=T1, adjoint=adjoint).ys)

    with pytest.raises(ValueError, match="cannot run under BacksolveAdjoint.*RecursiveCheckpointAdjoint"):
        jax.grad(end)(jnp.ones(2), diffrax.BacksolveAdjoint())


def test_implicit_adjoint_differentiates_the_finest_levels_steady_state(x64):
    # 1 - a y^3 = 0 at y = a^{-1/3}, dy/da = -a^{-4/3} / 3, whatever the coins and the cheap level do on the
    # way. The cheap level 2 - 2 y has another steady state, so the increment alone holds this one:
    # with the two fired together in every step the solve settles there.
    term = ml.MultilevelTerm(lambda t, y, args: 2 - 2 * y, lambda t, y, args: 1 - args * y**3)
    event = diffrax.Event(diffrax.steady_state_event(rtol=1e-10, atol=1e-12, norm=optx.rms_norm))

    def settled(a):
        settings = dict(t1=100.0, steps=2000, args=a, event=event, adjoint=diffrax.ImplicitAdjoint())
        return solve(term, mlem((1.0, 1.0), KEY), jnp.array(1.0), saveat=T1, **settings).ys[0]

    # diffrax and optimistix promote dtypes here.
    with jax.numpy_dtype_promotion("standard"):
        value, derivative = jax.value_and_grad(settled)(jnp.array(2.0))
    np.testing.assert_allclose(value, 2 ** (-1 / 3), rtol=1e-8)
    np.testing.assert_allclose(derivative, -(2 ** (-4 / 3)) / 3, rtol=1e-8)


@pytest.mark.slow
def test_implicit_adjoint_is_blind_to_coins_and_start(x64):
    # It is for steady states only: away from them it is the implicit function theorem applied to the last
    # state, -(df/dy)^{-1} df/da of the finest level, and zero for y0, silently and as diffrax documents it.
    term = ml.MultilevelTerm(lambda t, y, args: -y, lambda t, y, args: 1 - args * y**3)

    def end(a, y0):
        settings = dict(args=a, saveat=T1, adjoint=diffrax.ImplicitAdjoint())
        return solve(term, mlem((1.0, 0.5), KEY), y0, **settings).ys[0]

    with jax.numpy_dtype_promotion("standard"):
        a, y0 = jnp.array(2.0), jnp.array(0.5)
        y1, (by_a, by_y0) = jax.value_and_grad(end, argnums=(0, 1))(a, y0)
    np.testing.assert_allclose(by_a, -y1 / (3 * a), rtol=1e-10)
    assert by_y0 == 0
