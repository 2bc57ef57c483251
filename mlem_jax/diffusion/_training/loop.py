"""The loop over the steps of a stage: checkpoints, signals, progress, and the check that all numbers are finite."""

import collections
import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..._progress import show_progress
from .checkpoints import Checkpoints
from .signals import StopRequest, TrainingStopped
from .step import HISTORY_EVERY, State

# Takes the number of steps done and the mean losses of the last steps.
Record = Callable[[int, np.ndarray], object]


@dataclasses.dataclass(frozen=True)
class Loop:
    """What the loop calls, and what its messages say.

    - `steps`: of the whole run; `peak_learning_rate`, for the message of a loss that is not finite.
    - `step`: `(batch, state) -> (state, losses)`; `batch`, the batch of a step's number.
    - `watch`: called with the number of steps done and the state, every `watch_every` steps.
    - `record`: called with the number of steps done and the mean losses of the window of the history that ends there.
    """

    label: str
    steps: int
    peak_learning_rate: float
    step: Callable[[PyTree, State], tuple[State, Array]]
    batch: Callable[[int], PyTree]
    watch: Callable[[int, State], object] | None
    watch_every: int
    record: Record | None = None

    def run(self, state: State, checkpoints: Checkpoints, *, progress: bool) -> State:
        """The state after the last step. Raises `FloatingPointError` for a loss or a parameter that is not finite,
        `TrainingStopped` on SIGINT and SIGTERM; everything up to there is saved."""
        start = int(state.step)
        recent = collections.deque(maxlen=HISTORY_EVERY)
        with (
            StopRequest() as stop,
            show_progress(self.label, total=self.steps, done=start, unit="steps", shown=progress) as display,
        ):
            losses = None
            for step in range(start, self.steps):
                before = losses
                state, losses = self.step(self.batch(step), state)
                # The step before is waited for, so that this loop is at most one step ahead of the device: rates,
                # checkpoints and signals are then about steps that have been done.
                if before is not None:
                    recent.append(np.asarray(before))
                    display.update(step, _mean_loss(recent))
                # Asked once, because a signal may come between the save and the end of this step.
                self._after(step + 1, state, checkpoints, stop.signum)
            if losses is not None:
                recent.append(np.asarray(losses))
                display.update(self.steps, _mean_loss(recent))
            if stop.signum is not None:
                raise self._stopped(stop.signum, self.steps)
        return state

    def _after(self, done: int, state: State, checkpoints: Checkpoints, signum: int | None) -> None:
        save = done == self.steps or signum is not None or checkpoints.due(done)
        if save or done % HISTORY_EVERY == 0:
            self._check_finite(state, checkpoints.directory, whole=save)
        if self.record is not None and (done == self.steps or done % HISTORY_EVERY == 0):
            self.record(done, np.asarray(state.history[(done - 1) // HISTORY_EVERY]))
        if save:
            checkpoints.save(done, state)
        if self.watch is not None and done % self.watch_every == 0:
            self.watch(done, state)
        if signum is not None:
            raise self._stopped(signum, done)

    def _check_finite(self, state: State, directory: Path, *, whole: bool) -> None:
        """Raises `FloatingPointError` unless the losses are finite, and with `whole` all numbers of the state: the
        last update may not be finite, which no loss has shown yet."""
        step = int(state.step)
        losses = np.asarray(state.history[(step - 1) // HISTORY_EVERY])
        if not np.all(np.isfinite(losses)) or (whole and not _all_finite(state)):
            raise FloatingPointError(
                f"{self.label}: a loss or a parameter is not finite near step {step} (losses {losses}, peak learning "
                f"rate {self.peak_learning_rate:g}). Train again with a lower rate in another folder. Checkpoints in "
                f"{directory} are from before and usable."
            )

    def _stopped(self, signum: int, done: int) -> TrainingStopped:
        return TrainingStopped(
            f"{signal.Signals(signum).name}: stopped after step {done:,} of {self.steps:,} ({self.label}), which is "
            "saved. Run the same again to continue from there.",
            signum,
        )


def _mean_loss(recent: collections.deque) -> str:
    return "loss " + " ".join(f"{loss:.4f}" for loss in np.mean(recent, axis=0))


@jax.jit
def _all_finite(state: State) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]))
