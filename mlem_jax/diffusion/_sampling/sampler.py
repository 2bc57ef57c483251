"""One sample as a function of its index: its noise, its equation, its coins, its solve."""

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..._brownian import GridBrownianPath
from ..._solver import with_folded_key
from .._predictor import NoisePredictor, sampling_terms
from .callback import StepReport
from .given import Given, knowing_pixels


class Sampler(eqx.Module):
    """Everything that a sample depends on, except for its index and its inputs (`Given`).

    - `predictors`: those of the plan's levels, with `costs` of one evaluation each.
    - `solver`: the plan's, with the key from which the keys of the coin groups are made.
    - `ts`: the steps' times; `save_at`: those at which trajectories are saved, or `None`.
    - `noise_key`, `path_key`: for the start and the Brownian path, folded with the sample's index.
    - `args`: passed to the levels, the same for all samples; not used where there are labels.
    - `coin_group`: number of samples that share their coins; `None` for coins that are not random.
    - `report`: called after each step, or `None`.
    """

    predictors: tuple[NoisePredictor, ...]
    solver: diffrax.AbstractSolver
    ts: Float[Array, " times"]
    save_at: Float[Array, " saved"] | None
    noise_key: PRNGKeyArray
    path_key: PRNGKeyArray
    args: PyTree
    costs: tuple[float, ...] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    stochasticity: float = eqx.field(static=True)
    coin_group: int | None = eqx.field(static=True)
    report: StepReport | None = eqx.field(static=True, default=None)

    def start(self, index: Int[Array, ""], given: Given) -> Float[Array, "..."]:
        """The state from which a sample starts: noise, or the noised image or pixels that it is given."""
        noise = self.ts[0] * jr.normal(jr.fold_in(self.noise_key, index), self.shape, self.ts.dtype)
        start = noise if given.origin is None else given.origin + noise
        return start if given.known is None else jnp.where(given.mask, given.known + noise, start)

    def terms(self, index: Int[Array, ""], given: Given) -> Any:
        """The equation of a sample, with its own Brownian path."""
        predictors = self.predictors
        if given.known is not None:
            predictors = tuple(map(knowing_pixels, predictors))
        path = None
        if self.stochasticity:
            path = GridBrownianPath(self.ts, self.shape, key=jr.fold_in(self.path_key, index))
        return sampling_terms(
            *predictors, stochasticity=self.stochasticity, brownian_motion=path, costs=self.costs
        )

    def level_args(self, given: Given) -> PyTree:
        """The `args` of the levels for a sample."""
        label = self.args if given.label is None else given.label
        return label if given.known is None else given._replace(label=label)

    def group_solver(self, index: Int[Array, ""]) -> diffrax.AbstractSolver:
        """The solver with the coins of the group to which a sample belongs."""
        if self.coin_group is None:
            return self.solver
        return with_folded_key(self.solver, index // self.coin_group)

    def solve(
        self,
        solver: diffrax.AbstractSolver,
        index: Int[Array, ""],
        given: Given,
        saveat: diffrax.SaveAt,
    ) -> Any:
        """What `saveat` asks for of one sample."""
        solution = diffrax.diffeqsolve(
            self.terms(index, given),
            solver,
            self.ts[0],
            self.ts[-1],
            None,
            self.start(index, given),
            self.level_args(given),
            saveat=saveat,
            stepsize_controller=diffrax.StepTo(self.ts),
            max_steps=len(self.ts) - 1,
        )
        assert solution.ys is not None
        return solution.ys
