"""What a calibration measured, as data: a file on disk, and the quantities that follow from it."""

import dataclasses
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TYPE_CHECKING

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import ArrayLike, Float, Int, PyTree

from .._coins import AbstractCoins, SystematicCoins
from .._custom_types import Clock, Y
from .._io import read_npz, write_safely

if TYPE_CHECKING:
    from .plan import Plan

_META = ("batch", "device", "levels_id", "state_id", "finest_error", "check_coins", "order", "clock")


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """What [`mlem_jax.calibrate`][] measured on `P` pilot trajectories of `N` steps, for `K` levels,
    cheapest first. `print` it for a report.

    All errors are root mean squares over trajectories and components of the state, in the state's units.

    - `ts`: the times, `(N + 1,)`, in the order of the solve.
    - `increment`: RMS of `D_k = f^k - f^{k-1}` at the start of each step, `(N, K)`.
    - `kicks`: `J D_k` in random directions, `(N, K, P, R)`, with `J` the derivative of the end state with
        respect to the state after a step: by how much a kick `D_k` moves the end state. Mean squares over
        the last axes are mean squares over the components of `J D_k`.
    - `costs`, `seconds`: of one evaluation of each level, `(K,)`: in evaluations of the finest one, and by the
        clock for a batch of `batch` trajectories on `device`.
    - `single_steps`, `single_error`, `single_spread`: step counts `(S,)`; the error of each level
        alone with that many steps against an accurate solution of the finest level, `(K, S)`; and its relative
        standard error, from the spread over pilots.
    - `check_coins`, `check_budget`, `check_predicted`, `check_measured`, `check_spread`: trial runs of ML-EM on
        the pilot trajectories: the coins, the budget, the coins' part of the error as the linear model predicts
        it and as it was, and the relative standard error of the latter from the spread over pilots.
    - `finest_error`: the finest level's own error, if the user knows it.
    - `order`: of the steps, 1 (`MLEM`, on one level Euler) or 2 (`MLAB2`), for single levels and trial runs.
    - `clock`: of `MLAB2`, `"time"` or `"log"`.
    - `levels_id`, `state_id`: what they belong to (see `Calibration.require`).
    """

    ts: Float[np.ndarray, " times"]
    increment: Float[np.ndarray, "steps levels"]
    kicks: Float[np.ndarray, "steps levels pilots probes"]
    costs: Float[np.ndarray, " levels"]
    seconds: Float[np.ndarray, " levels"]
    single_steps: Int[np.ndarray, " counts"]
    single_error: Float[np.ndarray, "levels counts"]
    single_spread: Float[np.ndarray, "levels counts"]
    check_budget: Float[np.ndarray, " checks"]
    check_predicted: Float[np.ndarray, " checks"]
    check_measured: Float[np.ndarray, " checks"]
    check_spread: Float[np.ndarray, " checks"]
    check_coins: tuple[str, ...]
    batch: int
    device: str
    levels_id: tuple[str, ...]
    state_id: str
    finest_error: float | None = None
    order: int = 1
    clock: Clock = "time"

    @property
    def num_levels(self) -> int:
        """How many levels were measured."""
        return len(self.costs)

    @property
    def effect(self) -> Float[np.ndarray, "steps levels"]:
        """RMS of `J D_k` at the start of each step, `(N, K)`."""
        return np.sqrt(np.mean(self.kicks.astype(float) ** 2, axis=(2, 3)))

    @property
    def mass(self) -> Float[np.ndarray, " levels"]:
        """How far each level's increment could move the end state if all its kicks pointed one way:
        `sum_n h_n effect_k(t_n)`, `(K,)`."""
        return np.abs(np.diff(self.ts)) @ self.effect

    def save(self, path: str | Path) -> None:
        """Writes one `.npz` file, in one step. Raises `OSError` that says so where the disk is full."""
        path = Path(path)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        meta = json.dumps({name: values.pop(name) for name in _META})
        write_safely(path, lambda file: np.savez_compressed(file, meta=np.array(meta), **values))

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Reads what `save` wrote. Raises `ValueError` for another or a damaged file; whether it belongs to certain
        levels is checked by `require`."""
        arrays = read_npz(path, "a calibration", "Measure it again: mlem_jax.calibrate(...).save(FILE).")
        names = {field.name for field in dataclasses.fields(cls)}
        if set(arrays) != (names - set(_META)) | {"meta"}:
            raise ValueError(f"{path} is not a calibration: it holds {sorted(arrays)}.")
        meta = json.loads(str(arrays.pop("meta")))
        for name in ("check_coins", "levels_id"):
            meta[name] = tuple(meta[name])
        return cls(**arrays, **meta)

    def require(self, levels: tuple[Any, ...], y0: Y) -> None:
        """Raises `ValueError` unless the calibration was measured with these levels (their types, settings and all
        numbers inside them) and a state of these shapes."""
        ids = tuple(level_id(level) for level in levels)
        if ids != self.levels_id:
            differ = [k + 1 for k, (a, b) in enumerate(zip(ids, self.levels_id, strict=False)) if a != b]
            raise ValueError(
                f"This calibration was measured with {self.num_levels} levels and is used with {len(ids)}"
                + (f", of which number {', '.join(map(str, differ))} differ." if differ else ".")
                + " Calibrate again: mlem_jax.calibrate(terms, ts, y0s, key=key)."
            )
        if state_id(y0) != self.state_id:
            raise ValueError(
                f"This calibration was measured with a state {self.state_id} and is used with {state_id(y0)}. "
                "Calibrate again with initial states of that shape."
            )

    def single_level_error(self, level: int, steps: ArrayLike) -> Float[np.ndarray, "..."]:
        """Error of one level alone with so many steps: straight lines in logarithms between the
        measured counts. With more, falling with the order of the method for the finest level, constant for the
        others, which more steps do not make accurate; with fewer than measured, infinite, being unknown."""
        x = np.log(self.single_steps)
        y = np.log(np.clip(np.nan_to_num(self.single_error[level], nan=np.inf, posinf=np.inf), 1e-30, 1e30))
        wanted = np.log(np.asarray(steps, float))
        found = np.interp(wanted, x, y)
        if level == self.num_levels - 1:
            slope = np.clip((y[-1] - y[-2]) / (x[-1] - x[-2]), -float(self.order), 0.0)
            found = found + slope * np.maximum(wanted - x[-1], 0.0)
        return np.where(wanted < x[0] - 1e-9, np.inf, np.exp(found))

    def plan(
        self,
        *,
        budget: float | int | None = None,
        error: float | int | None = None,
        coins: AbstractCoins = SystematicCoins(offset=0.5),  # noqa: B008 (immutable)
        steps: int | None = None,
        levels: tuple[int, ...] | None = None,
        in_seconds: bool = False,
    ) -> "Plan":
        """See [`mlem_jax.make_plan`][]."""
        # Here, because planning stands on top of this file.
        from .planning import make_plan

        return make_plan(
            self, budget=budget, error=error, coins=coins, steps=steps, levels=levels, in_seconds=in_seconds
        )

    def __str__(self) -> str:
        from .report import calibration_report

        return calibration_report(self)


def level_id(level: Any) -> str:
    """A short text that differs between levels of different type, settings or numbers."""
    code = 0
    for part in _parts(level):
        code = zlib.crc32(part, code)
    name = getattr(level, "__qualname__", type(level).__qualname__)
    return f"{name}-{code:08x}"


def _parts(node: Any) -> Iterator[bytes]:
    """The types, settings and numbers inside a level, the same in every process and on every machine.

    Settings are the static fields of equinox modules. One that has its default or is `None` says nothing,
    so that a field added to a module in a later version leaves the calibrations of older ones valid.
    """
    if eqx.is_array_like(node):
        yield np.asarray(node).tobytes()
    elif isinstance(node, eqx.Module):
        yield type(node).__qualname__.encode()
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if not field.metadata.get("static", False):
                yield from _parts(value)
            elif value is not None and _text(value) != _text(field.default):
                yield f"{field.name}={_text(value)}".encode()
    elif jtu.all_leaves([node]):
        yield _text(node).encode()
    else:
        for child in jtu.tree_leaves(node, is_leaf=lambda x: x is not node):
            yield from _parts(child)


def _text(value: Any) -> str:
    """What a setting prints as, but for the addresses of objects, which differ from run to run."""
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def state_id(y0: PyTree) -> str:
    """The structure and shapes of a state."""
    shapes = [list(np.shape(leaf)) for leaf in jax.tree.leaves(y0)]
    return f"{jax.tree.structure(y0)} {shapes}"
