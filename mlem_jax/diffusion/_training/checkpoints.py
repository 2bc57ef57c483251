"""Checkpoints of one stage of training: when, where, and whether they may be continued."""

import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from ..._io import full_disk
from .step import HISTORY_EVERY, State

# A run that is killed, perhaps while it writes, then repeats less than a minute.
_SECONDS = 30.0
# Two are kept while a third one is written.
_AT_ONCE = 3


def checkpoint_bytes(parameters: int, averages: int = 1) -> int:
    """Room that the checkpoints of networks take at most, at four bytes a number: the
    parameters, their averages and Adam's two moments."""
    return _AT_ONCE * 4 * (3 + averages) * parameters


class Checkpoints:
    """The checkpoints in a folder.

    **Arguments:** `directory`; `run`, the settings that determine the numbers, as a JSON object with `steps` and
    `warmup_steps`;
    `every`, steps from one checkpoint to the next, by default half a minute.
    """

    def __init__(self, directory: str | Path, run: dict[str, Any], *, every: int | None = None):
        self.directory, self.run, self.every = Path(directory), run, every
        options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        handler = ocp.StandardCheckpointHandler()
        self._manager = ocp.CheckpointManager(
            self.directory.absolute(), item_handlers=handler, options=options
        )
        self._saved_at = time.monotonic()

    def __enter__(self) -> "Checkpoints":
        self._manager.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.__exit__(kind, error, trace)

    def due(self, step: int) -> bool:
        """Whether it is time for the next one."""
        if self.every is not None:
            return step % self.every == 0
        return time.monotonic() - self._saved_at >= _SECONDS

    def save(self, step: int, state: State) -> None:
        """Writes a checkpoint in the background. Raises `OSError` if the disk has no room for it; orbax would
        continue and print tracebacks from its threads."""
        leaves = jax.tree.leaves(state)
        # Parameters hardly compress, and each array comes with a description.
        needed = sum(leaf.nbytes for leaf in leaves) + 1024 * len(leaves)
        if shutil.disk_usage(self.directory).free < needed:
            raise full_disk(self.directory)
        self._manager.save(step, args=ocp.args.StandardSave(state), custom_metadata=self.run)
        self._saved_at = time.monotonic()

    def restore(self, fresh: State) -> State:
        """The state of the last checkpoint, or `fresh` if there is none.

        A run of fewer steps is continued with the learning rate that a run of `run["steps"]` steps has from there on.
        Raises `ValueError` for a damaged checkpoint and one of other networks or settings.
        """
        step = self._manager.latest_step()
        if step is None:
            return fresh
        try:
            begun = self._manager.metadata(step).custom_metadata or {}
            differ = self._differences(begun)
            if not differ:
                return self._read(step, begun.get("steps", self.run["steps"]), fresh)
        except Exception as error:
            # Damaged files make orbax raise anything, down to Exception itself.
            earlier = [s for s in self._manager.all_steps() if s != step]
            before = f"step {max(earlier)}" if earlier else "the beginning"
            raise ValueError(
                f"The checkpoint {self.directory / str(step)} is damaged or of other networks; nothing was deleted. "
                f"Move that folder away to continue from {before}, or choose another folder. (orbax says: "
                f"{str(error)[:200]})"
            ) from error
        raise ValueError(
            f"{self.directory} holds a run that differs in {', '.join(differ)}. Continue it with the "
            "configuration it was started with, with the same number of steps or more, or choose another folder."
        )

    def _differences(self, begun: dict[str, Any]) -> list[str]:
        longer = begun.get("steps", 0) < self.run["steps"]
        may_differ = {"steps", "warmup_steps"} if longer else set()
        return [
            f"{k} (there {begun[k]}, now {now})"
            for k, now in self.run.items()
            if begun.get(k, now) != now and k not in may_differ
        ]

    def _read(self, step: int, steps: int, fresh: State) -> State:
        windows = -(-steps // HISTORY_EVERY)
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, fresh)
        rows = shapes.history
        rows = jax.ShapeDtypeStruct((windows, *rows.shape[1:]), rows.dtype, sharding=rows.sharding)
        shapes = eqx.tree_at(lambda state: state.history, shapes, rows)
        found = cast(State, self._manager.restore(step, args=ocp.args.StandardRestore(shapes)))
        history = jnp.pad(found.history, ((0, len(fresh.history) - windows), (0, 0)))
        return eqx.tree_at(lambda state: state.history, found, history)
