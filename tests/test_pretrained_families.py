"""DiT, SiT, EDM2, JiT and the decoder of AutoencoderKL: parity with their authors' code and diffusers', what is
found from the files, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained_problems import deviations, distance, last, TOLERANCE, write_folder
from pretrained_weights import load_case, weights
from safetensors.numpy import load_file, save_file

from mlem_jax.diffusion import EDM, FlowMatching, load_decoder, load_network, VariancePreserving

# The fixture, the family to be named, and what follows from it.
CASES = {
    "dit_diffusers": (None, VariancePreserving, "eps"),
    "dit_original": ("dit", VariancePreserving, "eps"),
    "sit_original": ("sit", FlowMatching, "velocity"),
    "edm2_labels": (None, EDM, "x0"),
    "edm2_latents": (None, EDM, "x0"),
    "jit": (None, FlowMatching, "x0"),
}


def write(folder, name):
    if name in ("dit_diffusers", "decoder"):
        return write_folder(folder / name, name)
    about, _ = load_case(name)
    file = folder / f"{name}.safetensors"
    save_file(weights(about["shapes"], about["seed"]), file)
    return file


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """One checkpoint for each fixture."""
    root = tmp_path_factory.mktemp("families")
    return {name: write(root, name) for name in [*CASES, "decoder"]}


def load(paths, name, **settings):
    config = None if name == "dit_diffusers" else load_case(name)[0]["config"]
    return load_network(paths[name], family=CASES[name][0], config=config, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_the_references(paths, name, dtype):
    predictor = load(paths, name, dtype=dtype)
    assert isinstance(predictor.process, CASES[name][1]) and predictor.prediction == CASES[name][2]
    assert getattr(predictor.process, "noise_at", 0) == 0
    _, arrays = load_case(name)
    if predictor.network.classes is None:
        del arrays["labels"]
    out, gradient = deviations(predictor.network, arrays)
    assert out < TOLERANCE[dtype] and gradient < TOLERANCE[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_decoded_pictures_and_gradients_are_the_references(paths, dtype):
    decoder = load_decoder(paths["decoder"], dtype=dtype)
    _, arrays = load_case("decoder")
    out, pull_back = jax.vjp(decoder, last(arrays["x"]))
    assert distance(out, arrays["out"]) < TOLERANCE[dtype]
    assert distance(pull_back(last(arrays["probe"]))[0], arrays["gradient"]) < TOLERANCE[dtype]


def test_latents_of_edm2_are_those_of_the_autoencoder_standardised(paths):
    # A deviation of 0.5 around 0 (Karras et al. 2024) against means and deviations of the autoencoder's own.
    decoder = load_decoder(paths["decoder"], latents="edm2")
    raw = jnp.array([5.81 + 4.17, 3.25, 0.12 - 3.71, -2.15])
    found = jnp.array([0.5, 0.0, -0.5, 0.0]) / decoder.scale + decoder.shift
    assert jnp.allclose(found, raw, atol=1e-5)
    with pytest.raises(ValueError, match="3 numbers for 4 channels"):
        load_decoder(paths["decoder"], latents=((0.0,) * 3, (1.0,) * 3))


def test_a_decoder_takes_its_latents_only(paths, tmp_path):
    with pytest.raises(ValueError, match="takes latents of 4 channels"):
        load_decoder(paths["decoder"])(jnp.zeros((6, 8, 3)))
    with pytest.raises(ValueError, match="an AutoencoderKL is expected"):
        load_decoder(paths["dit_diffusers"])
    (write_folder(tmp_path / "vae", "decoder") / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        load_decoder(tmp_path)


def test_files_that_do_not_tell_ask_for_what_is_missing(paths):
    with pytest.raises(ValueError, match="do not tell which architecture it is. Write family=..., one"):
        load_network(paths["dit_original"])
    with pytest.raises(ValueError, match="how many heads"):
        load_network(paths["dit_original"], family="dit")
    with pytest.raises(ValueError, match="does not tell heads and start"):
        load_network(paths["jit"])
    with pytest.raises(ValueError, match="no multiple of heads = 3"):
        load_network(paths["dit_original"], family="dit", config={"heads": 3})
    with pytest.raises(ValueError, match="not a DiT or SiT: it lacks"):
        load_network(paths["edm2_labels"], family="sit")
    with pytest.raises(ValueError, match="not an EDM2 network"):
        load_network(paths["jit"], family="edm2")
    with pytest.raises(ValueError, match="not a JiT: it lacks"):
        load_network(paths["dit_original"], family="jit")


def test_equal_embeddings_of_diffusers_are_kept_once(paths, tmp_path):
    folder = write_folder(tmp_path / "converted", "dit_diffusers")
    file = folder / "diffusion_pytorch_model.safetensors"
    arrays = load_file(file)
    for name in arrays:
        if ".1.norm1.emb." in name:
            arrays[name] = arrays[name.replace(".1.norm1.emb.", ".0.norm1.emb.")]
    save_file(arrays, file)
    shared, own = load_network(folder).network, load_network(paths["dit_diffusers"]).network
    assert shared.embeddings is not None and shared.blocks[1].embeddings is None
    assert own.embeddings is None and own.blocks[1].embeddings is not None
    assert np.array_equal(shared.embeddings.label.table, own.blocks[0].embeddings.label.table)


def test_guidance_knows_the_label_that_stands_for_no_label(paths):
    assert load(paths, "sit_original", guidance=2.0).network.null == 5
    assert load(paths, "jit", guidance=2.0).network.null == 5
    with pytest.raises(ValueError, match="takes none"):
        load(paths, "edm2_latents", guidance=2.0)
