"""The sizes of an EDM2 network."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class EDM2Config:
    """Sizes and constants of an EDM2 network, with the authors' defaults.

    - `size`: side of the (square) image or latent image; `channels` of it.
    - `classes`: number of labels; 0 for an unconditional network.
    - `width`: base number of channels, and its `multipliers` at every resolution; `depth`: blocks at each.
    - `attention_sizes`: sides at which blocks have attention.
    - `sigma_data`: standard deviation of the data; 0.5 in all published networks.
    - `label_balance`, `skip_balance`, `residual_balance`, `attention_balance`: weights of the second of two summands.
    - `clip`: bound of every block's output.
    """

    size: int = 64
    channels: int = 3
    classes: int = 1000
    width: int = 192
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    depth: int = 3
    attention_sizes: tuple[int, ...] = (16, 8)
    sigma_data: float | int = 0.5
    label_balance: float | int = 0.5
    skip_balance: float | int = 0.5
    residual_balance: float | int = 0.3
    attention_balance: float | int = 0.3
    clip: float | int = 256.0

    def __post_init__(self):
        halvings = 2 ** (len(self.multipliers) - 1)
        if self.size % halvings:
            raise ValueError(
                f"The configuration has size = {self.size} with {len(self.multipliers)} resolutions, which need a "
                f"multiple of {halvings}."
            )
