"""A ladder's description as a TOML file: read, checked and written."""

import dataclasses
import tomllib
import warnings
from pathlib import Path
from typing import Any

import tomli_w

from .._predictor import TrainedPrediction
from .._process import AbstractProcess, EDM, FlowMatching, VarianceExploding, VariancePreserving
from .config import Config
from .level import DiTLevel, KINDS, Level
from .training import Training

# Of the files that `config_text` writes. Files without a version are of version 1; version 2 knows `input_skip`.
VERSION = 2

# The processes that `[process] kind` names, each with the prediction that is trained by default.
PROCESSES: dict[str, tuple[type[AbstractProcess], TrainedPrediction]] = {
    "variance_preserving": (VariancePreserving, "v"),
    "variance_exploding": (VarianceExploding, "x0"),
    "edm": (EDM, "x0"),
    "flow_matching": (FlowMatching, "velocity"),
}


def read_config(path: str | Path) -> Config:
    """Reads and checks a ladder's TOML file.

    A file that a later version of the library wrote, as its `version` tells, may have settings that are not known
    here; they are left out with a warning.

    Raises `FileNotFoundError`, or `ValueError` naming the table and key that is unknown, missing or
    malformed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} is not a file; the TOML file of a ladder is expected, such as the config.toml in a run's folder."
        )
    return _config(_table(path), path)


def parse_config(text: str, where: str | Path) -> Config:
    """The configuration in a text, which errors say comes from `where`."""
    return _config(_parse(text, where), where)


def read_saved_config(path: str | Path) -> Config:
    """The description of a ladder that was saved. Where its file is older than `input_skip`, its networks have
    none, not even the levels that would get one today."""
    table = _table(path)
    config = _config(table, path)
    if "version" in table:
        return config
    levels = tuple(
        dataclasses.replace(level, input_skip=False) if level.needs_input_skip(config.shape) else level
        for level in config.levels
    )
    return dataclasses.replace(config, levels=levels)


def config_text(config: Config) -> str:
    """The TOML file that [`mlem_jax.diffusion.read_config`][] reads as this configuration. It contains all training
    settings, to be edited, except those that are off."""
    kind = next((name for name, (process, _) in PROCESSES.items() if type(config.process) is process), None)
    if kind is None:
        raise ValueError(
            f"A process of type {type(config.process).__name__} has no name in a ladder's TOML file; only "
            f"{', '.join(process.__name__ for process, _ in PROCESSES.values())} can be saved with a ladder."
        )
    kinds = {level: name for name, level in KINDS.items()}
    table = {
        "version": VERSION,
        **_settings(config, leave_out=("process", "training", "levels")),
        "process": {"kind": kind, **_settings(config.process)},
        "training": _settings(config.training),
        # Everything, so that a level does not change with the defaults of a later version.
        "levels": [{"kind": kinds[type(level)], **_settings(level)} for level in config.levels],
    }
    return tomli_w.dumps(table)


def _settings(described: Any, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    values = {f.name: getattr(described, f.name) for f in dataclasses.fields(described)}
    # TOML has no null; None is the default of every such setting.
    return {k: v for k, v in values.items() if v is not None and k not in leave_out}


def _table(path: str | Path) -> dict[str, Any]:
    content = Path(path).read_bytes()
    try:
        return _parse(content.decode(), path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}.") from None


def _parse(text: str, where: str | Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where} is not valid TOML: {error}.") from None


def _config(table: dict[str, Any], path: str | Path) -> Config:
    table = dict(table)
    version = table.pop("version", 1)
    if type(version) is not int or version < 1:
        raise ValueError(f"{path} has version = {version!r}; an integer of at least 1 is expected.")
    build = _Build(tolerant=version > VERSION)
    tables = table.pop("levels", [])
    if not isinstance(tables, list) or not tables:
        raise ValueError(f"{path} has no [[levels]] tables; write one per level, cheapest first.")
    table["levels"] = tuple(
        build.level(level, f"[[levels]] number {i + 1} of {path}") for i, level in enumerate(tables)
    )
    table["process"], natural = build.process(table.get("process", {}), f"[process] of {path}")
    table.setdefault("prediction", natural)
    table["training"] = build(Training, table.get("training", {}), f"[training] of {path}")
    return build(Config, table, str(path))


@dataclasses.dataclass(frozen=True)
class _Build:
    """Makes objects of tables; with `tolerant` settings that are not known are left out, else they are errors."""

    tolerant: bool

    def __call__(self, kind: type, table: Any, where: str) -> Any:
        if not isinstance(table, dict):
            raise ValueError(f"{where} is {table!r}; a table of settings is expected.")
        fields = dataclasses.fields(kind)
        known = [field.name for field in fields]
        unknown = sorted(set(table) - set(known))
        if unknown and not self.tolerant:
            raise ValueError(f"{where} has {unknown}, which is not known; known are {known}.")
        if unknown:
            warnings.warn(
                f"{where} was written by a later version of mlem_jax and has {unknown}, which this version does not "
                "know and leaves out. Update mlem_jax if the ladder does not behave as it should.",
                stacklevel=2,
            )
        missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in table]
        if missing:
            raise ValueError(
                f"{where} is incomplete: write {', '.join(f'{name} = ...' for name in missing)}."
            )
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items() if k in known}
        try:
            return kind(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from None

    def level(self, table: Any, where: str) -> Level | DiTLevel:
        kind, settings = _kind(table, where, "unet", tuple(KINDS))
        return self(KINDS[kind], settings, where)

    def process(self, table: Any, where: str) -> tuple[AbstractProcess, TrainedPrediction]:
        kind, settings = _kind(table, where, "variance_preserving", tuple(PROCESSES))
        process, natural = PROCESSES[kind]
        return self(process, settings, where), natural


def _kind(table: Any, where: str, default: str, known: tuple[str, ...]) -> tuple[str, Any]:
    """The `kind` of a table, and the rest of it."""
    if not isinstance(table, dict):
        return default, table
    kind = table.get("kind", default)
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(f"{where} has kind = {kind!r}, which is not known; write one of {known}.")
    return kind, {k: v for k, v in table.items() if k != "kind"}
