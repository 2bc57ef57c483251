"""Writes the fixtures of `test_pretrained.py`: what the reference implementations compute, for weights from a seed.

Runs in an environment of its own with PyTorch and diffusers, which the library does not need:

    python3 -m venv /tmp/parity && /tmp/parity/bin/pip install torch diffusers numpy
    /tmp/parity/bin/python tests/make_pretrained_fixtures.py

JiT, EDM2, and DiT and SiT under their authors' names are compared with their authors' code, of which checkouts are
needed (`git clone`; the script runs their modules and copies nothing), and timm and einops:

    ... tests/make_pretrained_fixtures.py --dit DiT --sit SiT --edm2 edm2 --jit JiT

Families without a checkout are left as they are. Every fixture holds inputs, outputs and one gradient with respect
to the input, float32, channels first.
"""

import argparse
import importlib
import sys
from typing import Any

import diffusers
import numpy as np
import torch
from pretrained_weights import save_case
from reference_networks import compute, fill, normal, save, SEED

SMALL = {
    "sample_size": 16,
    "block_out_channels": [16, 32, 32],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
# One per group of options of the training scripts and of the checkpoints of Ho et al. 2020 and Song et al. 2021.
UNETS: dict[str, dict[str, Any]] = {
    "unet2d_ddpm": {
        **SMALL,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "unet2d_heads": {**SMALL, "layers_per_block": 2, "attention_head_dim": None, "num_class_embeds": 5},
    "unet2d_adm": {
        **SMALL,
        "sample_size": [8, 16],
        "in_channels": 4,
        "out_channels": 4,
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "act_fn": "gelu",
        "center_input_sample": True,
        "time_embedding_dim": 24,
        "num_class_embeds": 3,
    },
    "unet2d_fourier": {
        **SMALL,
        "time_embedding_type": "fourier",
        "add_attention": False,
        "mid_block_scale_factor": 1.4142135623730951,
    },
}


def make_unets() -> None:
    for name, settings in UNETS.items():
        model = diffusers.UNet2DModel(**settings)
        config = {**model.config, "_class_name": "UNet2DModel"}
        shapes = fill(model, SEED)
        side = settings["sample_size"]
        height, width = (side, side) if isinstance(side, int) else side
        x = normal(3, model.config.in_channels, height, width, seed=1)
        times = np.array([0.0, 321.0, 999.0], np.float32)
        if settings.get("time_embedding_type") == "fourier":
            times = np.array([0.02, 1.0, 300.0], np.float32)
        arrays = {"x": x, "times": times, "probe": normal(*x.shape, seed=2)}
        labels = None
        if model.config.num_class_embeds is not None:
            labels = torch.tensor([2, 0, 1])
            arrays["labels"] = labels.numpy()
        out, gradient = compute(
            lambda t, model=model, times=times, labels=labels: (
                model(t, torch.from_numpy(times), labels).sample
            ),
            x,
            arrays["probe"],
        )
        about = {
            "config": config,
            "seed": SEED,
            "shapes": shapes,
            "made_by": f"diffusers {diffusers.__version__}",
        }
        print(save_case(name, about, {**arrays, "out": out, "gradient": gradient}))


# Ten steps each; nothing is clipped, and the multistep methods stay at second order to the end.
SAMPLERS: dict[str, Any] = {
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "dpm_solver": lambda: diffusers.DPMSolverMultistepScheduler(algorithm_type="dpmsolver", **_MULTISTEP),
    "dpm_solver_pp": lambda: diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", **_MULTISTEP
    ),
}
_MULTISTEP: dict[str, Any] = {
    "beta_end": 0.02,
    "timestep_spacing": "leading",
    "lower_order_final": False,
    "final_sigmas_type": "sigma_min",
}


def make_samples(name: str = "unet2d_ddpm") -> None:
    """Whole sampling runs by diffusers' schedulers on one of the networks above."""
    model = diffusers.UNet2DModel(**UNETS[name])
    fill(model, SEED)
    arrays = {"x": normal(2, 3, 16, 16, seed=3)}
    for sampler, make in SAMPLERS.items():
        scheduler = make()
        scheduler.set_timesteps(10)
        x = torch.from_numpy(arrays["x"])
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(model(x, t).sample, t, x).prev_sample
        arrays[f"{sampler}_times"] = scheduler.timesteps.numpy()
        arrays[sampler] = x.numpy()
    about = {"case": name, "made_by": f"diffusers {diffusers.__version__}"}
    print(save_case("samplers", about, arrays))


def make_diffusers_dits() -> None:
    """With embeddings of its own in every block, and with those of the first block in all."""
    settings: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 2,
        "sample_size": 8,
        "num_embeds_ada_norm": 5,
    }
    model = diffusers.DiTTransformer2DModel(**settings)
    config = {**model.config, "_class_name": "DiTTransformer2DModel"}
    about = {"config": config, "made_by": f"diffusers {diffusers.__version__}"}
    arrays = {
        "x": normal(3, 4, 8, 8, seed=1),
        "times": np.array([0.0, 321.0, 999.0], np.float32),
        "labels": np.array([0, 3, 5]),
    }

    def call(model: Any, x: torch.Tensor, times: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return model(x, times, labels).sample[:, :4]

    save("dit_diffusers", model, call, about, dict(arrays))


def imported(checkout: str, module: str) -> Any:
    """A module of a checkout, whose own imports are found there too."""
    sys.path.insert(0, checkout)
    for name in [name for name in sys.modules if name.split(".")[0] in ("models", "util")]:
        del sys.modules[name]
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(checkout)


def make_dit(name: str, checkout: str) -> None:
    """`name` is dit or sit."""
    models = imported(checkout, "models")
    sizes = {
        "input_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "hidden_size": 32,
        "depth": 2,
        "num_heads": 2,
    }
    model = (models.DiT if name == "dit" else models.SiT)(**sizes, num_classes=5)
    times = [0.0, 321.0, 999.0] if name == "dit" else [0.01, 0.5, 1.0]
    arrays = {
        "x": normal(3, 4, 8, 8, seed=1),
        "times": np.array(times, np.float32),
        "labels": np.array([0, 3, 5]),
    }

    def call(model: Any, x: torch.Tensor, times: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return model(x, times, labels)[:, :4]

    save(f"{name}_original", model, call, {"config": {"heads": 2}, "made_by": "the authors' code"}, arrays)


def make_edm2(checkout: str) -> None:
    networks = imported(checkout, "training.networks_edm2")
    cases = {
        "edm2_labels": {"img_resolution": 16, "img_channels": 3, "label_dim": 5, "channel_mult": [1, 2]},
        "edm2_latents": {"img_resolution": 8, "img_channels": 4, "label_dim": 0, "channel_mult": [1, 1]},
    }
    for name, sizes in cases.items():
        model = networks.Precond(**sizes, model_channels=64, num_blocks=1, attn_resolutions=[8])
        side, channels, classes = sizes["img_resolution"], sizes["img_channels"], sizes["label_dim"]
        sigmas = np.array([0.002, 0.5, 80.0], np.float32)
        x = normal(3, channels, side, side, seed=1) * np.sqrt(0.25 + sigmas**2)[:, None, None, None]
        # The last has no label, a row of zeros.
        arrays = {"x": x.astype(np.float32), "times": sigmas, "labels": np.array([0, 3, 5])}

        def call(
            model: Any, x: torch.Tensor, times: torch.Tensor, labels: torch.Tensor, n=classes
        ) -> torch.Tensor:
            return model(x, times, torch.eye(n + 1)[labels][:, :n] if n else None)

        save(name, model, call, {"config": None, "made_by": "the authors' code"}, arrays)


def make_jit(checkout: str) -> None:
    # Its attention asks for a GPU.
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # pyright: ignore[reportAttributeAccessIssue]
    module = imported(checkout, "model_jit")
    sizes: dict[str, Any] = {
        "input_size": 16,
        "patch_size": 4,
        "hidden_size": 32,
        "depth": 3,
        "num_heads": 2,
        "bottleneck_dim": 16,
        "in_context_len": 3,
        "in_context_start": 1,
        "num_classes": 5,
    }
    arrays = {
        "x": normal(3, 3, 16, 16, seed=1),
        "times": np.array([0.01, 0.5, 1.0], np.float32),
        "labels": np.array([0, 3, 5]),
    }

    def call(model: Any, x: torch.Tensor, times: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return model(x, times, labels)

    about = {"config": {"heads": 2, "start": 1}, "made_by": "the authors' code"}
    save("jit", module.JiT(**sizes), call, about, arrays)


def make_decoder() -> None:
    """The decoder of an `AutoencoderKL`; "times" and labels have no meaning for it."""
    settings: dict[str, Any] = {
        "block_out_channels": [16, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "scaling_factor": 0.18215,
    }
    model = diffusers.AutoencoderKL(**settings)
    config = {**model.config, "_class_name": "AutoencoderKL"}
    shapes = fill(model, SEED)
    x = normal(2, 4, 6, 8, seed=1)
    probe = normal(2, 3, 12, 16, seed=2)
    out, gradient = compute(lambda z: model.decode(z / model.config.scaling_factor).sample, x, probe)
    about = {
        "seed": SEED,
        "shapes": shapes,
        "config": config,
        "made_by": f"diffusers {diffusers.__version__}",
    }
    print(save_case("decoder", about, {"x": x, "probe": probe, "out": out, "gradient": gradient}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for family in ("dit", "sit", "edm2", "jit"):
        parser.add_argument(f"--{family}", metavar="CHECKOUT", help="of the authors' code")
    given = parser.parse_args()
    torch.set_num_threads(1)
    make_unets()
    make_samples()
    make_diffusers_dits()
    make_decoder()
    if given.dit:
        make_dit("dit", given.dit)
    if given.sit:
        make_dit("sit", given.sit)
    if given.edm2:
        make_edm2(given.edm2)
    if given.jit:
        make_jit(given.jit)


if __name__ == "__main__":
    main()
