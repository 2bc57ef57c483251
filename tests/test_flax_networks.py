"""Flax modules as levels, by the lines of the how-to pages: linen and NNX pairs with batch statistics and dropout off,
what the page on MaxDiffusion says, and that weights that change are noticed."""

import re
from pathlib import Path

import diffrax
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from flax import nnx

import mlem_jax as ml
from mlem_jax.diffusion import calibrate_ladder

HOW_TO = Path(__file__).parents[1] / "docs" / "how-to"


def names_of(page, blocks):
    """What the first blocks of a page's code define."""
    code = re.findall(r"^```python\n(.*?)^```", (HOW_TO / f"{page}.md").read_text(), re.M | re.S)
    scope = {"__name__": "page"}
    for block in code[:blocks]:
        exec(block, scope)
    return scope


@pytest.fixture(scope="module")
def page():
    return names_of("maxdiffusion", 2)


@pytest.fixture(scope="module")
def own():
    return names_of("own-network", 3)


class Linen(nn.Module):
    """With batch statistics and dropout, off unless it is trained."""

    width: int

    @nn.compact
    def __call__(self, y, t, train=False):
        hidden = nn.Dense(self.width)(jnp.append(y, t))
        hidden = nn.BatchNorm(use_running_average=not train)(hidden)
        return nn.Dense(4)(nn.Dropout(0.5, deterministic=not train)(nn.swish(hidden)))


class NNX(nnx.Module):
    def __init__(self, width, seed):
        rngs = nnx.Rngs(seed)
        self.first, self.norm = nnx.Linear(5, width, rngs=rngs), nnx.BatchNorm(width, rngs=rngs)
        self.dropout, self.last = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(width, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.swish(self.norm(self.first(x)))))


def linen_pair(own):
    def level(width, seed):
        module = Linen(width)
        return own["LinenLevel"](module, module.init(jr.key(seed), jnp.zeros(4), 0.0))

    return level(8, 0), level(32, 1)


def nnx_pair(own):
    modules = NNX(8, 0), NNX(32, 1)
    for module in modules:
        module.eval()
    return tuple(map(own["nnx_level"], modules))


@pytest.mark.slow
@pytest.mark.parametrize("make", [linen_pair, nnx_pair])
def test_a_pair_is_calibrated_planned_solved_and_differentiated(own, make):
    """With both levels in every step the sum telescopes: the end and its gradient with respect to the large network's
    weights are those of Euler on it alone, and the small one's weights do not matter."""
    term = ml.MultilevelTerm(*make(own))
    ts, y0s = jnp.linspace(0.0, 1.0, 9), jr.normal(jr.key(2), (4, 4))
    found = ml.calibrate(term, ts, y0s, key=jr.key(3), progress=False)
    plan = found.plan(budget=4)

    def end(term, solver, ts):
        controller = diffrax.StepTo(ts)
        terms = (term, solver, ts[0], ts[-1], None, y0s[0])
        return diffrax.diffeqsolve(*terms, stepsize_controller=controller).ys[0]

    assert np.all(np.isfinite(end(plan.terms(term), plan.solver(key=jr.key(0)), plan.grid)))

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def size(term, solver):
        return jnp.sum(end(term, solver, ts) ** 2)

    alone, expected = size(term, diffrax.Euler())
    both, gradient = size(term, ml.MLEM([1.0, 1.0]))
    np.testing.assert_allclose(both, alone, rtol=1e-5)
    small, large = (jax.tree.leaves(eqx.filter(g, eqx.is_inexact_array)) for g in gradient.levels)
    reference = jax.tree.leaves(eqx.filter(expected.levels[1], eqx.is_inexact_array))
    for mine, other in zip(large, reference, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)
    assert any(np.any(leaf != 0) for leaf in large)
    assert all(np.all(np.abs(leaf) < 1e-4) for leaf in small)


def test_the_velocity_of_channels_first_latents_becomes_the_predicted_noise(page):
    """x = (1 - t) x_0 + t eps with t = s / (1 + s), and v = eps - x_0: so eps = x + (1 - t) v."""
    predictor = page["ladder"].predictors()[1]
    x, text, s = jr.normal(jr.key(2), (2, 1, 2, 2)), page["prompts"][0], jnp.asarray(0.5)
    t = 1 / 3
    velocity = page["large"](x[None], jnp.asarray([1000 * t]), text[None])[0]
    np.testing.assert_allclose(predictor(x, s, text), x + (1 - t) * velocity, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_weights_that_change_in_place_are_noticed(page):
    """Without another `split`: a plan for the old weights is refused."""
    ladder = page["ladder"]
    found = calibrate_ladder(ladder, steps=4, pilots=2, progress=False)
    module = page["large"]
    y0 = jnp.zeros(ladder.shape)
    found.require(ladder.term().levels, y0)
    module.out.kernel[...] = 2 * module.out.kernel[...]
    with pytest.raises(ValueError, match="of which number 2 differ"):
        found.require(ladder.term().levels, y0)
