"""Networks that others have trained: parity with the reference implementations (fixtures made by
`make_pretrained_fixtures.py`), what files are refused, and schedules."""

import json

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
from mlem_jax.diffusion import (
    load_network,
    ProbabilityFlow,
    sampling_terms,
    UNet2D,
    UNet2DConfig,
    VariancePreserving,
)

UNETS = ["unet2d_ddpm", "unet2d_heads", "unet2d_adm", "unet2d_fourier"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder for each fixture."""
    root = tmp_path_factory.mktemp("pretrained")
    return {name: write_folder(root / name, name) for name in UNETS}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", UNETS)
def test_outputs_and_gradients_are_the_references(folders, name, dtype):
    network = load_network(folders[name], dtype=dtype).network
    assert all(
        leaf.dtype == dtype for leaf in jax.tree.leaves(network) if leaf is not network.time_frequencies
    )
    out, gradient = deviations(network, load_case(name)[1])
    assert out < TOLERANCE[dtype] and gradient < TOLERANCE[dtype]


@pytest.mark.slow
def test_a_single_image_is_the_same_as_in_a_batch(folders):
    network = load_network(folders["unet2d_heads"]).network
    _, arrays = load_case("unet2d_heads")
    x, times, labels = (
        last(arrays["x"]),
        jnp.asarray(arrays["times"]),
        jnp.asarray(arrays["labels"], jnp.int32),
    )
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


@pytest.mark.slow
def test_euler_is_ddim_of_the_reference(sampled):
    ts, y0 = grid(sampled, "ddim", 0.0)
    end = solve(diffrax.Euler(), sampling_terms(sampled[0]), ts, y0)
    assert distance(end, sampled[1]["ddim"]) < 1e-3


@pytest.mark.slow
def test_adams_bashforth_in_log_s_is_dpm_solver_2m_of_the_reference(sampled):
    process = sampled[0].process
    ts, y0 = grid(sampled, "dpm_solver", process.s_min)
    solver = ml.MLAB2([1.0], time_variable="log", key=jr.key(0))
    end = solve(solver, sampling_terms(sampled[0]), ts, y0)
    assert distance(process.alpha(ts[-1]) * end, sampled[1]["dpm_solver"]) < 1e-3


@pytest.mark.slow
def test_adams_bashforth_in_log_s_on_clean_images_is_dpm_solver_pp_2m_of_the_reference(sampled):
    process = sampled[0].process
    ts, y0 = grid(sampled, "dpm_solver_pp", process.s_min)
    solver = ml.MLAB2([1.0], time_variable="log", key=jr.key(0))
    term = ml.MultilevelTerm(DataFlow(ProbabilityFlow(sampled[0])))
    z = solve(solver, term, 1 / ts, y0 / ts[0])
    assert distance(process.sigma(ts[-1]) * z, sampled[1]["dpm_solver_pp"]) < 1e-3


def test_steps_are_found_from_s_and_between_them_by_the_logarithm(sampled):
    # The schedule of Ho et al. 2020: rates from 1e-4 to 0.02.
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    s = np.sqrt((1 - kept) / kept)
    times = sampled[0].conditioning
    assert np.allclose(times(jnp.asarray(s[[0, 500, 999]])), [0, 500, 999], atol=1e-3)
    assert float(times(jnp.asarray(np.sqrt(s[500] * s[501])))) == pytest.approx(500.5, abs=1e-3)
    process = sampled[0].process
    assert (process.s_min, process.s_max) == (pytest.approx(s[0]), pytest.approx(s[-1]))
    # Its own time is the schedule's: step n of 1000 is at (n + 1) / 1000, up to the discretisation.
    assert float(process.t(jnp.asarray(s[499]))) == pytest.approx(0.5, abs=2e-3)


SCHEDULERS = [
    ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, "eps", 14.6),
    ({"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}, "v", 20000.0),
    ({"prediction_type": "sample", "trained_betas": [0.1, 0.2, 0.5]}, "x0", np.sqrt(1 / 0.36 - 1)),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "velocity", 80.0),
]


@pytest.mark.parametrize(("scheduler", "prediction", "s_max"), SCHEDULERS)
def test_the_scheduler_beside_a_network_says_how_it_was_trained(
    folders, tmp_path, scheduler, prediction, s_max
):
    pipeline = tmp_path / "pipeline"
    unet = write_folder(pipeline / "unet", "unet2d_ddpm")
    (pipeline / "scheduler").mkdir()
    (pipeline / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (pipeline / "model_index.json").write_text("{}")
    for place in (unet, pipeline):
        predictor = load_network(place)
        assert predictor.prediction == prediction
        assert predictor.process.s_max == pytest.approx(s_max, rel=0.05)


def test_what_the_caller_says_of_the_training_wins(folders):
    process = VariancePreserving()
    predictor = load_network(folders["unet2d_ddpm"], process=process, prediction="x0", conditioning="log_s")
    assert (predictor.process, predictor.prediction, predictor.conditioning) == (process, "x0", "log_s")
    assert load_network(folders["unet2d_fourier"]).prediction == "score"


@pytest.mark.slow
def test_guidance_takes_the_label_that_the_caller_names(folders):
    _, arrays = load_case("unet2d_heads")
    plain = load_network(folders["unet2d_heads"])
    guided = load_network(folders["unet2d_heads"], guidance=3.0, null=4)
    x, s, labels = last(arrays["x"]), jnp.asarray(1.5), jnp.asarray(arrays["labels"], jnp.int32)
    given, without = plain(x, s, labels), plain(x, s, jnp.full(3, 4))
    assert jnp.allclose(guided(x, s, labels), without + 3 * (given - without), atol=1e-5)
    with pytest.raises(ValueError, match="null=..., its number"):
        load_network(folders["unet2d_heads"], guidance=3.0)
    with pytest.raises(ValueError, match="takes none"):
        load_network(folders["unet2d_ddpm"], guidance=3.0)


def test_labels_beyond_the_table_are_refused(folders):
    network = load_network(folders["unet2d_heads"]).network
    x, t = jnp.zeros((16, 16, 3)), jnp.asarray(1.0)
    with pytest.raises(ValueError, match="0 to 4 are expected"):
        network(x, t, jnp.asarray(5))
    assert jnp.isnan(jax.jit(lambda label: network(x, t, label))(jnp.asarray(5))).all()


@pytest.mark.slow
def test_random_weights_depend_on_the_key_and_the_name_only():
    about, _ = load_case("unet2d_ddpm")
    config = UNet2DConfig.read(about["config"])
    network = UNet2D.init(config, key=jr.key(0), dtype="bfloat16")
    assert network.dtype == jnp.bfloat16
    assert eqx.tree_equal(network, UNet2D.init(config, key=jr.key(0), dtype="bfloat16"))
    weight = network.mid_block.resnets[0].conv1.weight
    assert not jnp.array_equal(weight, network.mid_block.resnets[1].conv1.weight)
    # 9 * 32 inputs each.
    assert float(jnp.std(weight.astype(jnp.float32))) == pytest.approx(1 / np.sqrt(288), rel=0.05)
