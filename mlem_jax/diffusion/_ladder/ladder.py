"""A ladder of trained levels, and the diffrax terms and plans it gives."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ..._calibration.calibration import Calibration
from ..._calibration.fit_plan import FittedPlan
from ..._calibration.plan import Plan
from ..._calibration.planning import UnreachableError
from ..._solver.method import AbstractMethod
from ..._term import MultilevelTerm
from .._network import AbstractNetwork
from .._predictor import Guided, NoisePredictor, ProbabilityFlow, ReverseDrift
from .config import Config
from .methods import calibration_name, METHODS
from .sizes import count_flops, count_parameters

# One scale for all levels, or one for each level.
Guidance = float | int | Sequence[float | int]


@dataclasses.dataclass(frozen=True, eq=False)
class Ladder:
    """Trained networks of growing size, cheapest first.

    - `networks`: the levels' networks.
    - `config`: the description they were built from.
    - `card`: what was measured after training (losses, FLOPs and parameters of each level).
    - `calibrations`: of the probability flow (`"ode"`) and of the reverse SDE (`"sde"`) for
        [`mlem_jax.EulerMaruyama`][], and perhaps for [`mlem_jax.AdamsBashforth`][] (`"ode_2"`, `"sde_2"`), without
        guidance.

    Networks of a ladder with classes take a label, which comes from the `args` of the solve. With `guidance`, one
    scale or one for each level, each network is wrapped in [`mlem_jax.diffusion.Guided`][].
    """

    networks: tuple[AbstractNetwork, ...]
    config: Config
    card: dict[str, Any]
    calibrations: dict[str, Calibration]

    def __repr__(self) -> str:
        config = self.config
        size = " x ".join(map(str, config.shape))
        labels = "" if config.classes is None else f", {config.classes} classes"
        lines = [f"Ladder {config.name!r} for images of {size}{labels}, {config.prediction}-prediction"]
        for k, network in enumerate(self.networks):
            lines.append(
                f"  level {k + 1}: {type(network).__name__}, {count_parameters(network):,} parameters"
            )
        lines.append(f"  calibrations: {', '.join(sorted(self.calibrations)) or 'none'}")
        return "\n".join(lines)

    def term(self, *, sde: bool = False, guidance: Guidance | None = None) -> MultilevelTerm:
        """The multilevel drift of sampling: the probability flow, or with `sde=True` the reverse SDE's
        (add [`mlem_jax.diffusion.reverse_diffusion`][] for the noise). Costs are FLOPs per image.

        Raises `ValueError` for guidance without classes or with another number of scales than levels."""
        levels = self._drifts(sde, guidance)
        costs = [count_flops(network, guided=guidance is not None) for network in self.networks]
        return MultilevelTerm(*levels, costs=costs)

    def _drifts(
        self, sde: bool, guidance: Guidance | None = None
    ) -> tuple[ProbabilityFlow | ReverseDrift, ...]:
        drift = ReverseDrift if sde else ProbabilityFlow
        return tuple(map(drift, self.predictors(guidance=guidance)))

    def predictors(self, *, guidance: Guidance | None = None) -> tuple[NoisePredictor, ...]:
        """The networks as predictions of the noise. Raises as `term` does."""
        if guidance is None:
            return tuple(map(self.config.predictor, self.networks))
        classes = self.config.classes
        if classes is None:
            raise ValueError(
                f"guidance={guidance} needs networks that take a label, and this ladder was trained without "
                "classes. Leave it out, or train a ladder with classes = ... in its file."
            )
        single = isinstance(guidance, float | int)
        scales = [guidance] * len(self.networks) if single else list(guidance)
        if len(scales) != len(self.networks):
            raise ValueError(
                f"guidance={guidance} for {len(self.networks)} levels; one scale for all, or one for each, cheapest "
                "level first, is expected."
            )
        return tuple(
            self.config.predictor(Guided(network, float(scale), classes))
            for network, scale in zip(self.networks, scales, strict=True)
        )

    def calibration(
        self,
        *,
        sde: bool = False,
        method: AbstractMethod = METHODS[0],  # noqa: B008 (immutable)
    ) -> Calibration:
        """The calibration for a method, without guidance. Raises `ValueError` if the ladder was saved without it."""
        kind = calibration_name(sde, method)
        if kind not in self.calibrations:
            raise ValueError(
                f"This ladder has no calibration {kind!r}, only {sorted(self.calibrations)}. Measure it with "
                f"calibrate_ladder(ladder, sde={sde}, method=mlem_jax.{method})."
            )
        return self.calibrations[kind]

    def plan(
        self,
        *,
        budget: float | int | None = None,
        error: float | int | None = None,
        sde: bool = False,
        **settings: Any,
    ) -> Plan | FittedPlan:
        """The best plan of all methods that the ladder has calibrations for, and of fitted steps: the one of the
        smallest predicted error for a `budget`, the cheapest one for an `error`. Arguments and errors as for
        [`mlem_jax.Calibration.plan`][]."""
        there = [
            method for method in METHODS if calibration_name(sde, method) in self.calibrations
        ] or METHODS[:1]
        found: list[Plan | FittedPlan] = []
        refusals: list[ValueError] = []
        for method in there:
            calibration = self.calibration(sde=sde, method=method)
            calibration.require(self._drifts(sde), jnp.zeros(self.config.shape))
            try:
                found.append(calibration.plan(budget=budget, error=error, **settings))
            except ValueError as refusal:
                refusals.append(refusal)
        if not found:
            unreachable = [refusal for refusal in refusals if isinstance(refusal, UnreachableError)]
            raise min(unreachable, key=lambda refusal: refusal.least, default=refusals[0])
        return min(found, key=lambda plan: plan.error if error is None else plan.cost)

    def flops(self) -> tuple[float, ...]:
        """FLOPs of one evaluation of each level on one image, as XLA counts them."""
        return tuple(count_flops(network) for network in self.networks)
