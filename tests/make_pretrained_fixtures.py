"""Writes the fixtures of `test_pretrained.py`: what the reference implementations compute, for weights from a seed.

Runs in an environment of its own with PyTorch and diffusers, which the library does not need:

    python3 -m venv /tmp/parity && /tmp/parity/bin/pip install torch diffusers numpy
    /tmp/parity/bin/python tests/make_pretrained_fixtures.py

Every fixture holds inputs, outputs and one gradient with respect to the input, float32, channels first.
"""

import argparse
from typing import Any

import diffusers
import numpy as np
import torch
from pretrained_weights import save_case, weights

SEED = 7


def fill(module: torch.nn.Module, seed: int) -> dict[str, list[int]]:
    """Gives a module its weights from the seed; says their names and shapes."""
    shapes = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    module.load_state_dict({name: torch.from_numpy(w) for name, w in weights(shapes, seed).items()})
    module.eval()
    return shapes


def compute(call: Any, x: np.ndarray, probe: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The output for `x`, and the gradient of its inner product with `probe`."""
    tensor = torch.from_numpy(x).requires_grad_()
    out = call(tensor)
    (gradient,) = torch.autograd.grad((out * torch.from_numpy(probe)).sum(), tensor)
    return out.detach().numpy(), gradient.numpy()


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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
    "unet2d_ddpm": {**SMALL, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6},
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
            lambda t, model=model, times=times, labels=labels: model(t, torch.from_numpy(times), labels).sample,
            x,
            arrays["probe"],
        )
        about = {"config": config, "seed": SEED, "shapes": shapes, "made_by": f"diffusers {diffusers.__version__}"}
        print(save_case(name, about, {**arrays, "out": out, "gradient": gradient}))


# Ten steps each; nothing is clipped, and the multistep methods stay at second order to the end.
SAMPLERS: dict[str, Any] = {
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "dpm_solver": lambda: diffusers.DPMSolverMultistepScheduler(algorithm_type="dpmsolver", **_MULTISTEP),
    "dpm_solver_pp": lambda: diffusers.DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", **_MULTISTEP),
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


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    torch.set_num_threads(1)
    make_unets()
    make_samples()


if __name__ == "__main__":
    main()
