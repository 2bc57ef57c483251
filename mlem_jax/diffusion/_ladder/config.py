"""The one TOML file that describes a ladder of levels and how it is trained."""

import dataclasses
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, Literal

import jax.random as jr
from jaxtyping import Array, PRNGKeyArray

from .._network.dit import check_dit_sizes, DiT
from .._network.layers import AbstractNetwork
from .._network.unet import check_sizes, UNet
from .._predictor.adapter import NoisePredictor, Preconditioned, TrainedPrediction
from .._process.process import AbstractProcess, EDM, FlowMatching, VarianceExploding, VariancePreserving

Precision = Literal["float32", "bfloat16"]

# What `[process] kind` names, and what networks are trained to return where the file does not say.
PROCESSES: dict[str, tuple[type[AbstractProcess], TrainedPrediction]] = {
    "variance_preserving": (VariancePreserving, "v"),
    "variance_exploding": (VarianceExploding, "x0"),
    "edm": (EDM, "x0"),
    "flow_matching": (FlowMatching, "velocity"),
}
_LEAST = {"steps": 1, "match_steps": 0, "batch_size": 1, "warmup_steps": 0, "seed": 0, "sheet_every": 0}


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

    Every `sheet_every` steps (0 for never) a picture is drawn with the networks as they are and their held-out
    loss is written down, see [`mlem_jax.diffusion.train_ladder`][]; the training does not depend on it.
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

    def __post_init__(self):
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} = {value!r}; an integer of at least {least} is expected.")
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
        if not isinstance(self.ema_decay, float | int) or not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay = {self.ema_decay!r}; a number in [0, 1) is expected.")
        if not isinstance(self.label_dropout, float | int) or not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout = {self.label_dropout!r}; a number in [0, 1] is expected.")
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"precision = {self.precision!r} is not known; write one of {get_args(Precision)}."
            )


@dataclasses.dataclass(frozen=True)
class Level:
    """The arguments of one [`mlem_jax.diffusion.UNet`][], `kind = "unet"` in a file, which is the default."""

    width: int
    folds: tuple[int, ...] = (2, 2)
    multipliers: tuple[int, ...] = (1, 2)
    blocks: tuple[int, ...] = (1, 2)
    attention: tuple[bool, ...] | None = None

    def check(self, shape: tuple[int, ...], classes: int | None) -> None:
        """Raises `ValueError` unless there is such a network."""
        sizes = (self.width, self.folds, self.multipliers, self.blocks, self.attention)
        check_sizes(shape, *sizes, classes)

    def network(self, shape: tuple[int, int, int], classes: int | None, *, key: PRNGKeyArray) -> UNet:
        """The untrained network."""
        return UNet(
            shape,
            self.width,
            folds=self.folds,
            multipliers=self.multipliers,
            blocks=self.blocks,
            attention=self.attention,
            classes=classes,
            key=key,
        )


@dataclasses.dataclass(frozen=True)
class DiTLevel:
    """The arguments of one [`mlem_jax.diffusion.DiT`][], `kind = "dit"` in a file."""

    width: int
    patch: int = 4
    depth: int = 4
    heads: int = 4

    def check(self, shape: tuple[int, ...], classes: int | None) -> None:
        """Raises `ValueError` unless there is such a network."""
        check_dit_sizes(shape, self.width, self.patch, self.depth, self.heads, classes)

    def network(self, shape: tuple[int, int, int], classes: int | None, *, key: PRNGKeyArray) -> DiT:
        """The untrained network."""
        sizes = {"patch": self.patch, "depth": self.depth, "heads": self.heads}
        return DiT(shape, self.width, **sizes, classes=classes, key=key)


# What `kind` in `[[levels]]` names.
KINDS: dict[str, type[Level] | type[DiTLevel]] = {"unet": Level, "dit": DiTLevel}


@dataclasses.dataclass(frozen=True)
class Config:
    """A ladder of levels, cheapest first, as [`mlem_jax.diffusion.read_config`][] reads it from a TOML
    file. With `classes` all its networks take a label.

    Where noise is added to images that are not scaled down (`VarianceExploding`, `EDM`) networks have the
    preconditioning of Karras et al. 2022 around them, [`mlem_jax.diffusion.Preconditioned`][] with its default
    `sigma_data`, and `prediction` is `"x0"`.
    """

    name: str
    shape: tuple[int, int, int]
    levels: tuple[Level | DiTLevel, ...]
    prediction: TrainedPrediction = "v"
    process: AbstractProcess = VariancePreserving()
    training: Training = Training()
    classes: int | None = None

    def __post_init__(self):
        if self.classes is not None and (type(self.classes) is not int or self.classes < 1):
            raise ValueError(
                f"classes = {self.classes!r}; an integer of at least 1 is expected, or none at all."
            )
        if self.prediction not in get_args(TrainedPrediction):
            raise ValueError(
                f"prediction = {self.prediction!r} is not known; write one of {get_args(TrainedPrediction)}."
            )
        if self.preconditioned and self.prediction != "x0":
            raise ValueError(
                f"prediction = {self.prediction!r} with {type(self.process).__name__}, whose networks return the clean "
                'image through a preconditioning; write prediction = "x0", or leave it out of the file.'
            )
        for k, level in enumerate(self.levels):
            try:
                level.check(self.shape, self.classes)
            except ValueError as error:
                raise ValueError(f"[[levels]] number {k + 1}: {error}") from None

    @property
    def preconditioned(self) -> bool:
        """Whether networks have a preconditioning around them."""
        return isinstance(self.process, VarianceExploding | EDM)

    def predictor(self, network: Callable[..., Array]) -> NoisePredictor:
        """A trained network, guided or not, as a prediction of the noise."""
        if self.preconditioned:
            return NoisePredictor(Preconditioned(network), self.process, "x0", conditioning="sigma")
        return NoisePredictor(network, self.process, self.prediction)

    def networks(self) -> tuple[AbstractNetwork, ...]:
        """The untrained levels, cheapest first; the same for the same seed."""
        return tuple(
            level.network(self.shape, self.classes, key=jr.fold_in(jr.key(self.training.seed), i))
            for i, level in enumerate(self.levels)
        )


def _build(kind: type, table: Any, where: str) -> Any:
    if not isinstance(table, dict):
        raise ValueError(f"{where} is {table!r}; a table of settings is expected.")
    fields = dataclasses.fields(kind)
    known = [field.name for field in fields]
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(f"{where} has {unknown}, which is not known; known are {known}.")
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in table]
    if missing:
        raise ValueError(f"{where} is incomplete: write {', '.join(f'{name} = ...' for name in missing)}.")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _build_level(table: Any, where: str) -> Level | DiTLevel:
    kind = table.get("kind", "unet") if isinstance(table, dict) else "unet"
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{where} has kind = {kind!r}, which is not known; write one of {tuple(KINDS)}.")
    settings = {k: v for k, v in table.items() if k != "kind"} if isinstance(table, dict) else table
    return _build(KINDS[kind], settings, where)


def _build_process(table: Any, where: str) -> tuple[AbstractProcess, TrainedPrediction]:
    kind = table.get("kind", "variance_preserving") if isinstance(table, dict) else "variance_preserving"
    if not isinstance(kind, str) or kind not in PROCESSES:
        raise ValueError(f"{where} has kind = {kind!r}, which is not known; write one of {tuple(PROCESSES)}.")
    process, natural = PROCESSES[kind]
    settings = {k: v for k, v in table.items() if k != "kind"} if isinstance(table, dict) else table
    return _build(process, settings, where), natural


def read_config(path: str | Path) -> Config:
    """Reads and checks a ladder's TOML file.

    Raises `FileNotFoundError`, or `ValueError` naming the table and key that is unknown, missing or
    malformed.
    """
    with open(path, "rb") as file:
        try:
            table = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not valid TOML: {error}.") from None
    tables = table.pop("levels", [])
    if not isinstance(tables, list) or not tables:
        raise ValueError(f"{path} has no [[levels]] tables; write one per level, cheapest first.")
    levels = tuple(
        _build_level(level, f"[[levels]] number {i + 1} of {path}") for i, level in enumerate(tables)
    )
    table["levels"] = levels
    table["process"], natural = _build_process(table.get("process", {}), f"[process] of {path}")
    table.setdefault("prediction", natural)
    table["training"] = _build(Training, table.get("training", {}), f"[training] of {path}")
    return _build(Config, table, str(path))
