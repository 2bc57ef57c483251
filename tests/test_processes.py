"""All processes against their definitions in time, and their grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_scores import PROCESSES, S_MAX, S_MIN, SCHEDULES
from problems import as_user

from mlem_jax.diffusion import EDM, FlowMatching, VarianceExploding, VariancePreserving

every_process = pytest.mark.parametrize("name", PROCESSES)


@every_process
def test_scale_and_noise_are_those_of_the_definition_in_time(name, x64):
    process, (alpha_at, sigma_at, _) = PROCESSES[name], SCHEDULES[name]
    t = jnp.linspace(0.001, 0.999, 300)
    s = process.s(t)
    np.testing.assert_allclose(s, sigma_at(t) / alpha_at(t), rtol=1e-10)
    np.testing.assert_allclose(process.alpha(s), alpha_at(t), rtol=1e-10)
    np.testing.assert_allclose(process.sigma(s), sigma_at(t), rtol=1e-10)
    np.testing.assert_allclose(process.power(s), alpha_at(t) ** 2 + sigma_at(t) ** 2, rtol=1e-10)


@every_process
@pytest.mark.parametrize("double, rtol", [(True, 1e-11), (False, 2e-4)], ids=["float64", "float32"])
def test_time_and_s_are_inverse_to_each_other(name, double, rtol):
    process = PROCESSES[name]
    with jax.enable_x64(double):
        s = jnp.geomspace(S_MIN, S_MAX, 300)
        assert s.dtype == (jnp.float64 if double else jnp.float32)
        np.testing.assert_allclose(process.s(process.t(s)), s, rtol=rtol)
        t = jnp.linspace(float(process.t(s[0])), float(process.t(s[-1])), 300)
        np.testing.assert_allclose(process.t(process.s(t)), t, rtol=rtol, atol=1e-6 * (not double))


@every_process
def test_grids_are_uniform_in_their_maps_between_exact_ends(name, x64):
    process, (*_, time_at) = PROCESSES[name], SCHEDULES[name]
    maps = {"time": time_at, "log": jnp.log, "cosine": jnp.arctan, "karras": lambda s: s ** (1 / 7)}
    for spacing, forward in maps.items():
        for steps in (1, 7, 200):
            grid = process.grid(steps, spacing=spacing)
            assert grid.shape == (steps + 1,) and grid[0] == S_MAX and grid[-1] == S_MIN
            mapped = forward(grid)
            np.testing.assert_allclose(mapped, jnp.linspace(mapped[0], mapped[-1], steps + 1), atol=1e-11)
    np.testing.assert_allclose(np.diff(process.grid(9, rho=2.5) ** 0.4, 2), 0, atol=1e-12)


def test_time_grids_of_single_precision_decrease():
    for process in PROCESSES.values():
        assert np.all(np.diff(process.grid(1000, spacing="time")) < 0)


def test_bad_processes_say_what_to_write():
    for kind in (EDM, FlowMatching, VarianceExploding):
        with pytest.raises(
            ValueError, match=f"{kind.__name__} needs 0 < s_min < s_max.*s_min=2.0, s_max=1.0"
        ):
            kind(2.0, 1.0)
    for betas in ((20.0, 0.1), (-1.0, 1.0), (0.0, 0.0), (0.1, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match=r"was given betas=\(.*such as betas=\(0.1, 20.0\)"):
            VariancePreserving(betas=betas)
    with as_user():
        with pytest.raises(ValueError, match="betas=.*the first and the last"):
            VariancePreserving(betas=(0.1, 1.0, 20.0))
        with pytest.raises(ValueError, match="noise_at=2; write noise_at=1 if"):
            FlowMatching(noise_at=2)
    with pytest.raises(ValueError, match="rho=0; a positive number is expected"):
        EDM().grid(3, rho=0)
