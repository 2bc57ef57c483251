"""What several test files share: the coin policies, levels whose executions are counted, z-tests, and
short forms of a solve."""

import contextlib
import dataclasses

import diffrax
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import mlem_jax as ml

POLICIES = {
    "independent": ml.IndependentCoins(),
    "nested": ml.NestedCoins(),
    "stratified": ml.StratifiedCoins(),
    "systematic": ml.SystematicCoins(),
    "midpoint": ml.SystematicCoins(offset=0.5),
}
every_policy = pytest.mark.parametrize("coins", POLICIES.values(), ids=POLICIES.keys())

WITH_STATE = diffrax.SaveAt(t1=True, solver_state=True)


@contextlib.contextmanager
def as_user():
    """Without run-time type checks, as users run the library: the messages are the library's own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def assert_mean(samples, expected, *, z=5.0):
    """A z-test that the mean of independent samples (axis 0) is `expected`, entry by entry.

    At the default of 5 standard errors a true claim fails in 6e-7 of all seeds per entry.
    """
    samples = np.asarray(samples, np.float64)
    standard_error = samples.std(0) / np.sqrt(len(samples))
    score = np.abs(samples.mean(0) - expected) / (standard_error + 1e-12)
    assert np.all(score <= z), f"{score.max():.1f} standard errors from the expected mean"


def slope(x, y):
    """The exponent of `y ~ x ** slope`, by least squares."""
    return np.polyfit(np.log(np.asarray(x)), np.log(np.asarray(y)), 1)[0]


def decay(rate):
    """The drift `-rate y`, for a PyTree `y`."""
    return lambda t, y, args: jax.tree.map(lambda x: -rate * x, y)


class CountedLevels:
    """Levels `-(1 + k / 10) y` that count how often the device really runs them."""

    def __init__(self, num_levels, costs=None):
        self._counts = np.zeros(num_levels, int)
        self.term = ml.MultilevelTerm(*[self._level(k) for k in range(num_levels)], costs=costs)

    def _level(self, k):
        drift = decay(1 + 0.1 * k)

        def bump():
            self._counts[k] += 1

        def level(t, y, args):
            # Without operands the callback is not batched: one call is one execution, of any batch.
            jax.debug.callback(bump)
            return drift(t, y, args)

        return level

    def take(self):
        """The executions of each level since the last call."""
        jax.effects_barrier()
        counts, self._counts[:] = self._counts.tolist(), 0
        return counts


def remeasured(calibration, **changes):
    """The calibration with other measurements."""
    return dataclasses.replace(
        calibration, measurements=dataclasses.replace(calibration.measurements, **changes)
    )


def mlem(probabilities, key, coins=POLICIES["independent"], **settings):
    return ml.MLEM(jnp.asarray(probabilities), coins=coins, key=key, **settings)


def solve(terms, solver, y0, *, t0=0.0, t1=1.0, steps=20, saveat=WITH_STATE, **settings):
    """`diffeqsolve` in `steps` equal steps."""
    if "stepsize_controller" not in settings:
        settings.setdefault("dt0", (t1 - t0) / steps)
    return diffrax.diffeqsolve(
        terms, solver, t0, t1, settings.pop("dt0", None), y0, saveat=saveat, **settings
    )
