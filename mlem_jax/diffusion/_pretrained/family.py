"""What a family of pretrained networks tells the loader about a checkpoint."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .files import Checkpoint
from .network import AbstractPretrained
from .parameters import Scope
from .schedule import Training


@dataclasses.dataclass(frozen=True)
class Source:
    """What is there: the `checkpoint`, the `config.json` beside it, and that of the scheduler, `None` where there
    is no such file; and the `settings` that the user gave, which replace entries of the configuration."""

    checkpoint: Checkpoint
    config: Mapping[str, Any] | None
    scheduler: Mapping[str, Any] | None
    settings: Mapping[str, Any]

    @property
    def path(self) -> Path:
        return self.checkpoint.path

    def require_config(self, family: str) -> dict[str, Any]:
        """The configuration with the user's settings in it. Raises `FileNotFoundError` if there is none."""
        if self.config is None:
            raise FileNotFoundError(
                f"{self.path} has no config.json beside its weights, which a {family} needs: copy it from where "
                "the weights come from."
            )
        return {**self.config, **self.settings}


class NotInFilesError(ValueError):
    """The files of a network do not tell something that an argument of `load_network` then has to.

    - `problem`: what they do not tell, in a sentence.
    - `argument`, `expected`: which argument, and what its value has to be.
    """

    def __init__(self, problem: str, argument: str, expected: str):
        super().__init__(f"{problem} Write {argument}=..., {expected}.")
        self.problem, self.argument, self.expected = problem, argument, expected


@dataclasses.dataclass(frozen=True)
class Found:
    """How to `build` the network (of the class `name`), and how it was trained."""

    name: str
    build: Callable[[Scope], AbstractPretrained]
    training: Training
