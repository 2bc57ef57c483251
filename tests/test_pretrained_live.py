"""The live comparison with diffusers and PyTorch, at other sizes, shapes and times than the fixtures': needs the extra
`parity` and runs with `-m parity`. Folders are written by diffusers' own `save_pretrained`."""

import diffrax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from pretrained_problems import distance, last, TOLERANCE
from pretrained_weights import weights

import mlem_jax as ml
from mlem_jax.diffusion import load_decoder, load_network, PredictorLadder

pytestmark = pytest.mark.parity

NETWORKS = {
    # The training script of diffusers for unconditional images, a tenth as wide.
    "script": (
        "UNet2DModel",
        {
            "sample_size": 64,
            "block_out_channels": (16, 16, 32, 32, 64, 64),
            "norm_num_groups": 8,
            "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
        },
    ),
    "labels": (
        "UNet2DModel",
        {
            "sample_size": (16, 24),
            "block_out_channels": (16, 32),
            "norm_num_groups": 4,
            "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
            "num_class_embeds": 10,
        },
    ),
    "dit": (
        "DiTTransformer2DModel",
        {
            "num_attention_heads": 3,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 3,
            "sample_size": 16,
            "patch_size": 4,
            "num_embeds_ada_norm": 10,
        },
    ),
}


def reference(kind, settings, folder, seed):
    """diffusers' network with weights from a seed, saved."""
    import diffusers
    import torch

    model = getattr(diffusers, kind)(**settings).eval()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(w) for name, w in weights(shapes, seed).items()})
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NETWORKS)
def test_saved_networks_compute_the_same(tmp_path, name, dtype):
    import torch

    kind, settings = NETWORKS[name]
    model = reference(kind, settings, tmp_path, seed=11)
    network = load_network(tmp_path, dtype=dtype).network
    generator = np.random.default_rng(3)
    height, width, channels = network.shape
    for time in (0, 17, 500, 999):
        x = generator.standard_normal((2, channels, height, width)).astype(np.float32)
        label = None if network.classes is None else generator.integers(0, 10, 2)
        arguments = () if label is None else (torch.from_numpy(label),)
        with torch.no_grad():
            out = model(torch.from_numpy(x), torch.tensor([time, time]), *arguments).sample[:, :channels]
        labels = None if label is None else jnp.asarray(label, jnp.int32)
        found = network(last(x), jnp.asarray(float(time)), labels)
        assert distance(found, out.numpy()) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_saved_decoders_compute_the_same(tmp_path, dtype):
    import torch

    settings = {
        "block_out_channels": (16, 16, 32),
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 2,
        "norm_num_groups": 8,
    }
    model = reference("AutoencoderKL", settings, tmp_path, seed=12)
    z = np.random.default_rng(4).standard_normal((1, 4, 8, 10)).astype(np.float32)
    with torch.no_grad():
        out = model.decode(torch.from_numpy(z) / model.config.scaling_factor).sample
    found = load_decoder(tmp_path, dtype=dtype)(last(z))
    assert distance(found, out.numpy()) < TOLERANCE[dtype]


PAIR = {  # About 5 and 60 million FLOPs.
    name: (
        "UNet2DModel",
        {
            "sample_size": 32,
            "block_out_channels": widths,
            "layers_per_block": layers,
            "norm_num_groups": 4,
            "down_block_types": ["DownBlock2D"] * 3,
            "up_block_types": ["UpBlock2D"] * 3,
            "add_attention": False,
        },
    )
    for name, widths, layers in (("small", (4, 4, 8), 1), ("large", (8, 16, 32), 2))
}


def test_a_pair_of_saved_networks_with_probability_1_is_ddim(tmp_path):
    """Both levels are looked at in every step, so that the sum telescopes to the large one's DDIM."""
    import diffusers
    import torch

    models = {name: reference(*about, tmp_path / name, seed=13) for name, about in PAIR.items()}
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.save_pretrained(tmp_path / "large")
    scheduler.set_timesteps(12)
    x = torch.from_numpy(np.random.default_rng(5).standard_normal((2, 3, 32, 32)).astype(np.float32))
    end = x
    for time in scheduler.timesteps:
        with torch.no_grad():
            end = scheduler.step(models["large"](end, time).sample, time, end).prev_sample
    kept = scheduler.alphas_cumprod[scheduler.timesteps].numpy()
    # Its last step ends without noise.
    ts = jnp.asarray([*np.sqrt((1 - kept) / kept), 0.0])
    ladder = PredictorLadder([load_network(tmp_path / name) for name in PAIR])
    small, large = ladder.level_costs()
    assert 4e6 < small < 6.5e6 and 50e6 < large < 70e6
    found = diffrax.diffeqsolve(
        ladder.term(),
        ml.MLEM([1.0, 1.0], key=jr.key(0)),
        ts[0],
        ts[-1],
        None,
        last(x.numpy()) * jnp.sqrt(1 + ts[0] ** 2),
        stepsize_controller=diffrax.StepTo(ts),
    )
    assert found.ys is not None and distance(found.ys[0], end.numpy()) < 1e-3
