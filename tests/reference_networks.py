"""Weights, inputs and outputs of the reference implementations, for `make_pretrained_fixtures.py`. Needs PyTorch."""

from typing import Any

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


def save(name: str, model: torch.nn.Module, call: Any, about: dict, arrays: dict[str, np.ndarray]) -> None:
    """Fills a network, runs it and writes its fixture. `call` takes the network, `x`, times and labels."""
    shapes = fill(model, SEED)
    times, labels = torch.from_numpy(arrays["times"]), torch.from_numpy(arrays["labels"])
    arrays["probe"] = normal(*arrays["x"].shape, seed=2)
    out, gradient = compute(lambda x: call(model, x, times, labels), arrays["x"], arrays["probe"])
    about = {"seed": SEED, "shapes": shapes, **about}
    print(save_case(name, about, {**arrays, "out": out, "gradient": gradient}))
