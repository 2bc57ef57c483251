"""How the levels of a ladder are trained."""

import dataclasses
import math
from typing import get_args, Literal

Precision = Literal["float32", "bfloat16"]

_LEAST = {
    "steps": 1,
    "match_steps": 0,
    "batch_size": 1,
    "warmup_steps": 0,
    "seed": 0,
    "sheet_every": 0,
    "accumulate": 1,
}


@dataclasses.dataclass(frozen=True)
class Training:
    """How the levels are trained.

    The finest level is trained on the data for `steps` steps, then all smaller ones together are
    matched to it for `match_steps` steps (`match_steps = 0` trains every level on the data instead).
    While matching, `log s` is drawn as in training on data, or with `match_log_normal = [mean, deviation]`
    from that normal distribution: put it where the levels' differences move the final images.

    With classes, a label is replaced by "no label" with probability `label_dropout`, so that the networks can be
    guided (Ho & Salimans 2022). With `precision = "bfloat16"` networks compute in that type, while parameters,
    averages and losses stay float32.

    With `flip` each image is mirrored, left to right, with probability one half. With `accumulate = k` the batch of a
    step goes through the networks in `k` parts, whose gradients are averaged: less memory for the same step, which
    `batch_size` has to be a multiple of `k` for.

    The levels have exponential moving averages of the parameters, with decay `ema_decay`. For each decay in
    `more_ema_decays` another average is kept and written as a ladder of its own, whose `ema_decay` is that decay.
    Smaller levels are matched to the finest level with `ema_decay`.

    Every `sheet_every` steps (0 for never) a picture is drawn with the networks as they are and their held-out
    loss is written down, see [`mlem_jax.diffusion.train_ladder`][]; with `snapshots` the networks are kept, too. With
    `tensorboard` losses and sheets are also written for TensorBoard, which needs the extra `tensorboard`. The training
    does not depend on these.
    """

    steps: int = 10_000
    match_steps: int = 5_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    match_learning_rate: float = 2e-3
    match_log_normal: tuple[float, float] | None = None
    warmup_steps: int = 300
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    label_dropout: float = 0.1
    precision: Precision = "float32"
    sheet_every: int = 0
    flip: bool = False
    accumulate: int = 1
    snapshots: bool = False
    tensorboard: bool = False
    more_ema_decays: tuple[float, ...] = ()

    def __post_init__(self):
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} = {value!r}; an integer of at least {least} is expected.")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate = {self.accumulate} does not divide batch_size = {self.batch_size}; write one that does."
            )
        for name in ("flip", "snapshots", "tensorboard"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} = {getattr(self, name)!r}; true or false is expected.")
        if self.snapshots and not self.sheet_every:
            raise ValueError(
                "snapshots = true keeps the networks of every sheet; write sheet_every = 1000, say, too."
            )
        for name in ("learning_rate", "match_learning_rate", "clip_norm"):
            value = getattr(self, name)
            if not isinstance(value, float | int) or not 0 < value < math.inf:
                raise ValueError(f"{name} = {value!r}; a positive number is expected.")
        normal = self.match_log_normal
        if normal is not None:
            numbers = isinstance(normal, tuple) and all(isinstance(x, float | int) for x in normal)
            if not numbers or len(normal) != 2 or not all(map(math.isfinite, normal)) or normal[1] <= 0:
                raise ValueError(
                    f"match_log_normal = {normal!r}; the mean and the positive standard deviation of log s "
                    "are expected, for example [0.5, 1.6]."
                )
        if not _is_decay(self.ema_decay):
            raise ValueError(f"ema_decay = {self.ema_decay!r}; a number in [0, 1) is expected.")
        more = self.more_ema_decays
        if (
            not isinstance(more, tuple)
            or not all(map(_is_decay, more))
            or len({*more, self.ema_decay}) <= len(more)
        ):
            raise ValueError(
                f"more_ema_decays = {more!r}; different numbers in [0, 1) are expected, and not ema_decay = "
                f"{self.ema_decay!r} again, for example [0.99, 0.9999]."
            )
        if not isinstance(self.label_dropout, float | int) or not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout = {self.label_dropout!r}; a number in [0, 1] is expected.")
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"precision = {self.precision!r} is not known; write one of {get_args(Precision)}."
            )

    @property
    def ema_decays(self) -> tuple[float, ...]:
        """All decays, that of the ladder first."""
        return (self.ema_decay, *self.more_ema_decays)


def _is_decay(value: object) -> bool:
    return isinstance(value, float | int) and 0 <= value < 1
