"""Run as a program, the other process of a test of training on several devices.

python tests/training_problems.py COUNT FOLDER FILE
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[1]}"

import jax
import numpy as np
from diffusion_problems import arrays, randomised, tiny_config, tiny_images

from mlem_jax.diffusion._mesh import training_mesh
from mlem_jax.diffusion._training import train_networks


def trained(folder, *, steps=20):
    """The smaller tiny network matched to the other."""
    config = tiny_config()
    small, large = config.networks()
    common = {"peak_learning_rate": 1e-2, "save_every": 10, "progress": False}
    (found,), history = train_networks(
        config, (small,), tiny_images(), folder, steps=steps, teacher=randomised(large), **common
    )
    return arrays(found), history


if __name__ == "__main__":
    assert len(jax.devices()) == int(sys.argv[1])
    sizes = [training_mesh(batch_size).size for batch_size in (8, 9, 7)]
    numbers, history = trained(Path(sys.argv[2]))
    np.savez(sys.argv[3], numbers=numbers, history=history, sizes=sizes)
