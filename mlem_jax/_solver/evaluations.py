"""The number of evaluations in a solve, from the solver's state."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree

from .._custom_types import Numbers
from .multistep import MultistepState
from .state import AbstractMultilevelState


@dataclasses.dataclass(frozen=True)
class EvaluationReport:
    """The number of evaluations in one solve; `print` it for a table.

    - `steps`: number of steps.
    - `evaluations`: number of evaluations of each level, `(K,)`, cheapest first.
    - `costs`: cost of one evaluation of each level, in evaluations of the finest one, or `None`.
    - `firing_times`: for each level, the times of the steps in which it fired, in order. With `MLEM(..., record=N)`
        those among the last `N` steps, without a record `None`.
    - `evaluation_times`: likewise, the times at which the level was evaluated. A level that fires together with the
        next finer one and has the same weight cancels and is not evaluated.
    """

    steps: int
    evaluations: Int[np.ndarray, " levels"]
    costs: Float[np.ndarray, " levels"] | None
    firing_times: tuple[Float[np.ndarray, " _"], ...] | None
    evaluation_times: tuple[Float[np.ndarray, " _"], ...] | None

    @property
    def finest_evaluations(self) -> float:
        """Cost of the solve in evaluations of the finest level. Raises `ValueError` without costs."""
        if self.costs is None:
            raise ValueError(
                "The cost of a level is not known. Write MultilevelTerm(..., costs=(...)) or "
                "evaluation_report(solver_state, costs=(...)), one number per level in any unit."
            )
        return float(self.evaluations @ self.costs)

    def __str__(self) -> str:
        lines = [f"{self.steps} steps", "level  evaluations  cost each  finest evaluations"]
        for k, count in enumerate(self.evaluations):
            if self.costs is None:
                lines.append(f"{k + 1:5d}  {count:11d}  {'unknown':>9}")
            else:
                lines.append(f"{k + 1:5d}  {count:11d}  {self.costs[k]:9.4f}  {count * self.costs[k]:18.2f}")
        if self.costs is not None:
            lines.append(f"total  {'':11}  {'':9}  {self.finest_evaluations:18.2f}")
        return "\n".join(lines)


def evaluation_report(solver_state: PyTree, *, costs: Numbers | None = None) -> EvaluationReport:
    """The number of evaluations in a solve, from its `solver_state`.

    **Arguments:**

    - `solver_state`: the state that `SaveAt(t1=True, solver_state=True)` saves, of one solve or of a `vmap` with shared
        coins. The trajectories of such a batch have the same counts, except if events have stopped some of them; the
        report is that of the longest trajectory.
    - `costs`: cost of one evaluation of each level in any unit; by default those of the `MultilevelTerm`.

    Raises `ValueError` for a state that is not a multilevel solver's, for a batch with coins per trajectory, and for a
    wrong number of costs.
    """
    if not isinstance(solver_state, AbstractMultilevelState | MultistepState):
        raise ValueError(
            f"evaluation_report was given a {type(solver_state).__name__}; it needs the state of a multilevel "
            "solver: diffeqsolve(..., saveat=SaveAt(t1=True, solver_state=True)).solver_state."
        )
    state: Any = jax.tree.map(np.asarray, solver_state)
    if state.step.ndim:
        for step in np.unique(state.step):
            if len(np.unique(state.evaluations[state.step == step], axis=0)) > 1:
                raise ValueError(
                    "evaluation_report was given a batch of trajectories with coins of their own. Report on "
                    "one of them, evaluation_report(jax.tree.map(lambda x: x[i], solver_state)); its counts "
                    "are those of a solve of this trajectory alone."
                )
        longest = np.unravel_index(np.argmax(state.step), state.step.shape)
        state = jax.tree.map(lambda x: x[longest], state)
    num_levels = len(state.evaluations)
    relative = state.costs if costs is None else np.asarray(costs, float)
    if relative is not None:
        if relative.shape != (num_levels,):
            raise ValueError(f"There are {num_levels} levels and costs of shape {relative.shape}.")
        relative = np.asarray(relative / relative[-1], float)
    firing = evaluation = None
    # A solver without coins has no firings to record.
    firings = getattr(state, "firings", None)
    if firings is not None:
        times, fired, active = firings.times, firings.fired, firings.active
        # The record is a ring buffer: its oldest entry is overwritten next.
        order = np.roll(np.arange(len(times)), -(int(state.step) % len(times)))
        order = order[np.isfinite(times[order])]
        firing = tuple(_times_where(times[order], fired[order, k]) for k in range(num_levels))
        evaluation = tuple(_times_where(times[order], active[order, k]) for k in range(num_levels))
    return EvaluationReport(int(state.step), state.evaluations, relative, firing, evaluation)


def _times_where(times: Float[np.ndarray, " n"], mask: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    return times[mask]
