"""A function of the user's that is called on the host after each step of a batch."""

import functools
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

# Takes the number of the step, the noise level that it reached, the states and the indices of the samples.
StepCallback = Callable[[int, float, np.ndarray, np.ndarray], object]


class StepReport:
    """Calls a function with the states of a batch after each step, from compiled code.

    An exception of the function cannot leave compiled code. It is kept, the function is not called again, and
    `finish` raises it.
    """

    def __init__(self, function: StepCallback):
        self.function = function
        self.error: BaseException | None = None
        self._on_batch = custom_vmap(self._call)
        self._on_batch.def_vmap(self._call_batched)

    def saveat(
        self, ts: Float[Array, " times"], index: Int[Array, ""], shown: Bool[Array, ""]
    ) -> diffrax.SubSaveAt:
        """Saves nothing of a sample's steps, but reports them. Samples that are not `shown` are left out."""

        def report(s: Array, y: Array, args: Any) -> Array:
            del args
            return self._on_batch(jnp.argmin(jnp.abs(ts - s)), s, y, index, shown)

        return diffrax.SubSaveAt(steps=True, fn=report)

    def finish(self) -> None:
        """Waits for the calls of all steps. Raises what the function has raised."""
        jax.effects_barrier()
        error, self.error = self.error, None
        if error is not None:
            raise error

    def _call(self, *values: Array) -> Array:
        return self._call_batched(1, None, *(value[None] for value in values))[0][0]

    def _call_batched(self, size: int, batched: Any, *values: Array) -> tuple[Array, bool]:
        batched = [True] * len(values) if batched is None else batched
        whole = [
            value if there else jnp.broadcast_to(value, (size, *jnp.shape(value)))
            for value, there in zip(values, batched, strict=True)
        ]
        jax.debug.callback(self._on_host, *whole)
        # One byte for each sample and step, which diffrax keeps.
        return jnp.zeros(size, bool), True

    def _on_host(self, steps: Any, s: Any, states: Any, indices: Any, shown: Any) -> None:
        rows = np.flatnonzero(shown)
        if self.error is not None or not len(rows):
            return
        try:
            self.function(
                int(steps[0]), float(s[0]), np.asarray(states)[rows], np.asarray(indices, int)[rows]
            )
        except BaseException as error:
            self.error = error


@functools.lru_cache(maxsize=8)
def step_report(function: StepCallback) -> StepReport:
    """The report for a function; always the same one, so that code compiled for it is found again."""
    if not callable(function):
        raise ValueError(
            f"sample was given callback={function!r}; a function of (step, s, states, indices) is expected."
        )
    return StepReport(function)
