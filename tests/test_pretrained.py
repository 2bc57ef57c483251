"""Networks that others have trained: parity with the reference implementations (fixtures made by
`make_pretrained_fixtures.py`), what files are refused, and schedules."""


import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from pretrained_problems import deviations, distance, last, TOLERANCE, write_folder
from pretrained_weights import load_case

import mlem_jax as ml
from mlem_jax.diffusion import load_network, ProbabilityFlow, sampling_terms

UNETS = ["unet2d_ddpm", "unet2d_heads", "unet2d_adm", "unet2d_fourier"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder for each fixture."""
    root = tmp_path_factory.mktemp("pretrained")
    return {name: write_folder(root / name, name) for name in UNETS}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", UNETS)
def test_outputs_and_gradients_are_the_references(folders, name, dtype):
    network = load_network(folders[name], dtype=dtype).network
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(network) if leaf is not network.time_frequencies)
    out, gradient = deviations(network, load_case(name)[1])
    assert out < TOLERANCE[dtype] and gradient < TOLERANCE[dtype]


def test_a_single_image_is_the_same_as_in_a_batch(folders):
    network = load_network(folders["unet2d_heads"]).network
    _, arrays = load_case("unet2d_heads")
    x, times, labels = last(arrays["x"]), jnp.asarray(arrays["times"]), jnp.asarray(arrays["labels"], jnp.int32)
    assert distance(network(x[1], times[1], labels[1])[None], arrays["out"][1:2]) < 1e-5


def solve(solver, terms, ts, y0):
    solution = diffrax.diffeqsolve(
        terms, solver, ts[0], ts[-1], None, y0, stepsize_controller=diffrax.StepTo(ts), max_steps=len(ts)
    )
    return solution.ys[0]


class DataFlow(eqx.Module):
    """The probability flow in `z = y / s` and `u = 1 / s`, where `dz/du` is the predicted clean image."""

    flow: ProbabilityFlow

    def __call__(self, u, z, args):
        s, y = 1 / u, z / u
        return y - s * self.flow(s, y, args)


@pytest.fixture(scope="module")
def sampled(folders):
    """A predictor, and what diffusers' schedulers made of its reference."""
    return load_network(folders["unet2d_ddpm"]), load_case("samplers")[1]


def grid(sampled, sampler, end):
    predictor, arrays = sampled
    s = predictor.conditioning.table()[arrays[f"{sampler}_times"]]
    ts = jnp.asarray(np.append(s, end), jnp.float32)
    return ts, last(arrays["x"]) * jnp.sqrt(1 + ts[0] ** 2)


def test_euler_is_ddim_of_the_reference(sampled):
    ts, y0 = grid(sampled, "ddim", 0.0)
    end = solve(diffrax.Euler(), sampling_terms(sampled[0]), ts, y0)
    assert distance(end, sampled[1]["ddim"]) < 1e-3


def test_adams_bashforth_in_log_s_is_dpm_solver_2m_of_the_reference(sampled):
    process = sampled[0].process
    ts, y0 = grid(sampled, "dpm_solver", process.s_min)
    solver = ml.MLAB2([1.0], clock="log", key=jr.key(0))
    end = solve(solver, sampling_terms(sampled[0]), ts, y0)
    assert distance(process.alpha(ts[-1]) * end, sampled[1]["dpm_solver"]) < 1e-3


def test_adams_bashforth_in_log_s_on_clean_images_is_dpm_solver_pp_2m_of_the_reference(sampled):
    process = sampled[0].process
    ts, y0 = grid(sampled, "dpm_solver_pp", process.s_min)
    solver = ml.MLAB2([1.0], clock="log", key=jr.key(0))
    term = ml.MultilevelTerm(DataFlow(ProbabilityFlow(sampled[0])))
    z = solve(solver, term, 1 / ts, y0 / ts[0])
    assert distance(process.sigma(ts[-1]) * z, sampled[1]["dpm_solver_pp"]) < 1e-3
