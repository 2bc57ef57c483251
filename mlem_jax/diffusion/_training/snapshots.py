"""Networks on the way, kept as ladders."""

import dataclasses
from pathlib import Path

from .._ladder import Config, DiTLevel, Ladder, Level, save_ladder
from .run import config_of_decay
from .train import Averages


@dataclasses.dataclass(frozen=True)
class Snapshots:
    """Called with the number of steps done and the averaged networks, writes the ladder `STAGE-STEP`, which
    [`mlem_jax.diffusion.load_ladder`][] reads, and `STAGE-STEP-ema-DECAY` for each further decay. One that is there,
    from before a run was killed, has the same numbers and is kept."""

    folder: Path
    stage: str
    config: Config
    levels: tuple[Level | DiTLevel, ...]

    def __call__(self, step: int, averages: Averages) -> None:
        name = f"{self.stage}-{step:08d}"
        for i, (decay, networks) in enumerate(zip(self.config.training.ema_decays, averages, strict=True)):
            place = self.folder / (f"{name}-ema-{decay:g}" if i else name)
            if not place.exists():
                config = dataclasses.replace(config_of_decay(self.config, decay), levels=self.levels)
                card = {"name": f"{config.name}, {self.stage}, step {step}, decay {decay:g}"}
                save_ladder(place, Ladder(networks, config, card, {}))
