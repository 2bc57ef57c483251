"""Which files of pretrained networks are read, and which are refused."""

import json
import pickle
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained_problems import write_folder
from safetensors.numpy import load_file, save_file

from mlem_jax.diffusion import (
    load_network,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of one network."""
    root = tmp_path_factory.mktemp("pretrained")
    return {"unet2d_ddpm": write_folder(root / "unet2d_ddpm", "unet2d_ddpm")}


def test_names_of_older_versions_are_read(tmp_path, folders):
    folder = write_folder(tmp_path / "old", "unet2d_ddpm")
    file = folder / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    arrays = {}
    for name, array in load_file(file).items():
        for new, former in old.items():
            name = name.replace(f".{new}.", f".{former}.")
        arrays[name] = array
    assert any("proj_attn" in name for name in arrays)
    save_file(arrays, file)
    assert eqx.tree_equal(load_network(folder), load_network(folders["unet2d_ddpm"]))


@pytest.mark.parametrize("form", ["npz", "half", "parts"])
def test_other_files_hold_the_same(tmp_path, folders, form):
    folder = write_folder(tmp_path / form, "unet2d_ddpm")
    file = folder / "diffusion_pytorch_model.safetensors"
    arrays = load_file(file)
    file.unlink()
    if form == "npz":
        np.savez(folder / "weights.npz", **arrays)
    elif form == "half":
        save_file({name: array.astype(jnp.bfloat16) for name, array in arrays.items()}, file)
    else:
        names = sorted(arrays)
        for i, part in enumerate((names[::2], names[1::2])):
            save_file(
                {name: arrays[name] for name in part},
                folder / f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors",
            )
    found, expected = (load_network(place).network for place in (folder, folders["unet2d_ddpm"]))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.float32
        assert np.allclose(a, b, rtol=2**-8 if form == "half" else 0, atol=0)


# What is wrong with a folder, and what the message must say.
def truncate(folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def no_config(folder):
    (folder / "config.json").unlink()


def broken_config(folder):
    (folder / "config.json").write_text("{")


def integers(folder):
    change(folder, lambda arrays: {**arrays, "conv_in.bias": arrays["conv_in.bias"].astype(np.int32)})


def missing(folder):
    change(folder, lambda arrays: {k: v for k, v in arrays.items() if k != "conv_in.bias"})


def unknown(folder):
    change(folder, lambda arrays: {**arrays, "lora.up": np.zeros(3, np.float32)})


def resized(folder):
    change(folder, lambda arrays: {**arrays, "conv_in.bias": np.zeros(3, np.float32)})


def no_weights(folder):
    (folder / "diffusion_pytorch_model.safetensors").unlink()


def two_files(folder):
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes())


def pickled(folder):
    no_weights(folder)
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def disguised_pickle(folder):
    no_weights(folder)
    with zipfile.ZipFile(folder / "weights.npz", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))


def pickled_objects(folder):
    no_weights(folder)
    np.savez(folder / "weights.npz", a=np.array([Bomb()]))


def change(folder, edit):
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file(edit(load_file(file)), file)


class Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was executed')",)


FAULTS = [
    (truncate, ValueError, "truncated"),
    (no_config, FileNotFoundError, "has no config.json"),
    (broken_config, ValueError, "not a JSON file"),
    (integers, ValueError, "conv_in.bias has the type int32"),
    (missing, ValueError, "lacks conv_in.bias"),
    (unknown, ValueError, "has lora.up, which it does not know"),
    (resized, ValueError, r"conv_in.bias of shape \(3,\) instead of \(16,\)"),
    (no_weights, FileNotFoundError, "holds no weights"),
    (two_files, ValueError, "several checkpoints: a.safetensors, b.safetensors"),
    (pickled, ValueError, "is a pickle, which runs code"),
    (disguised_pickle, ValueError, "is a pickle, which runs code"),
    (pickled_objects, ValueError, "is not an .npz file of arrays"),
]


@pytest.mark.parametrize(("damage", "error", "message"), FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_bad_files_are_refused_in_a_sentence(tmp_path, damage, error, message):
    folder = write_folder(tmp_path / "bad", "unet2d_ddpm")
    damage(folder)
    before = sorted((file.name, file.read_bytes()) for file in folder.iterdir())
    with pytest.raises(error, match=message) as found:
        load_network(folder)
    assert len(str(found.value).splitlines()) == 1
    assert sorted((file.name, file.read_bytes()) for file in folder.iterdir()) == before


OPTIONS = [
    ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel, which is not supported"),
    ({"encoder_hid_dim": 3}, "encoder_hid_dim, which this library's UNet2DModel does not know"),
    (
        {"down_block_types": ["DownBlock2D", "SkipDownBlock2D", "KDownBlock2D"]},
        "KDownBlock2D, SkipDownBlock2D among",
    ),
    (
        {"time_embedding_type": "learned"},
        "time_embedding_type = 'learned'; supported are positional, fourier",
    ),
    ({"out_channels": 6}, "out_channels = 6"),
    ({"sample_size": None}, "has no sample_size"),
    ({"sample_size": 6}, "multiple of 4"),
    ({"norm_num_groups": 7}, "7 groups in a norm over 16 channels"),
    ({"block_out_channels": [16, 32]}, "3 down_block_types and 2 block_out_channels"),
    ({"block_out_channels": [16, 32, 48]}, "instead of"),
]


@pytest.mark.parametrize(("changed", "message"), OPTIONS)
def test_configurations_that_are_not_supported_are_refused(tmp_path, changed, message):
    folder = write_folder(tmp_path / "other", "unet2d_ddpm", **changed)
    with pytest.raises(ValueError, match=message):
        load_network(folder)


def test_arguments_that_cannot_be_meant_are_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="a floating type is expected"):
        load_network(folders["unet2d_ddpm"], dtype="int8")
    with pytest.raises(ValueError, match="family='resnet' is not known"):
        load_network(folders["unet2d_ddpm"], family="resnet")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_network(tmp_path / "nowhere")
    schedule = {"rescale_betas_zero_snr": True}
    folder = write_folder(tmp_path / "zero", "unet2d_ddpm")
    (folder / "scheduler_config.json").write_text(json.dumps(schedule))
    with pytest.raises(ValueError, match="last step has to keep some signal"):
        load_network(folder)
