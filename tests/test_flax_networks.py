"""What the page on MaxDiffusion says: a module with its call becomes a level, and weights that change are noticed."""

import re
from pathlib import Path

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from mlem_jax.diffusion import calibrate_ladder

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "maxdiffusion.md"


@pytest.fixture(scope="module")
def page():
    """Names of the page's code up to the calibration."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    scope = {"__name__": "page"}
    for block in blocks[:2]:
        exec(block, scope)
    return scope


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
