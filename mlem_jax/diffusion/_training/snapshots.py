"""Networks on the way, kept as ladders."""

import dataclasses
from pathlib import Path

from .._ladder import Config, DiTLevel, Ladder, Level, save_ladder
from .._network import AbstractNetwork


@dataclasses.dataclass(frozen=True)
class Snapshots:
    """Called with the number of steps done and the averaged networks, writes the ladder `STAGE-STEP`, which
    [`mlem_jax.diffusion.load_ladder`][] reads. One that is there, from before a run was killed, has the same numbers
    and is kept."""

    folder: Path
    stage: str
    config: Config
    levels: tuple[Level | DiTLevel, ...]

    def __call__(self, step: int, networks: tuple[AbstractNetwork, ...]) -> None:
        place = self.folder / f"{self.stage}-{step:08d}"
        if not place.exists():
            config = dataclasses.replace(self.config, levels=self.levels)
            card = {"name": f"{config.name}, {self.stage}, step {step}"}
            save_ladder(place, Ladder(networks, config, card, {}))
