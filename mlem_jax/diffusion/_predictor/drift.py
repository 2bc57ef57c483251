"""The drifts of sampling a diffusion model, in the variables `(y, s)` of `process.py`, and the terms made of them.

terms = sampling_terms(small, large)  # probability flow; the arguments are NoisePredictors, cheapest first
terms = sampling_terms(small, large, stochasticity=1.0, brownian_motion=path)  # reverse SDE
"""

import math
from collections.abc import Sequence

import diffrax
import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..._brownian import GridBrownianPath
from ..._custom_types import Numbers, RealScalarLike
from ..._term import MultilevelTerm
from .adapter import NoisePredictor


class ProbabilityFlow(eqx.Module):
    """The drift of the probability-flow ODE, `dy/ds = eps_hat(alpha y, s)`, as a level.

    Plain Euler from `s_max` down to `s_min` on this drift is DDIM (Song, Meng & Ermon 2021), so ML-EM is
    multilevel DDIM.

    **Arguments:** `predictor`, a [`mlem_jax.diffusion.NoisePredictor`][].

    Called as `(s, y, args) -> dy/ds` on one image or a batch of them; `args` is the label, or one label per
    image of the batch, that the network takes, and `None` for a network that takes none.
    """

    predictor: NoisePredictor

    def __call__(self, t: RealScalarLike, y: Float[Array, "..."], args: PyTree) -> Float[Array, "..."]:
        s = jnp.asarray(t, y.dtype)
        return self.predictor(self.predictor.process.alpha(s) * y, s, args)


class ReverseDrift(eqx.Module):
    """The drift of the reverse SDE, `dy = 2 eps_hat ds + sqrt(2 s) dW` with `s` decreasing, as a level.

    To be used with [`mlem_jax.diffusion.reverse_diffusion`][] as the noise. Called like
    [`mlem_jax.diffusion.ProbabilityFlow`][].
    """

    predictor: NoisePredictor

    def __call__(self, t: RealScalarLike, y: Float[Array, "..."], args: PyTree) -> Float[Array, "..."]:
        return 2 * ProbabilityFlow(self.predictor)(t, y, args)


class StochasticDrift(eqx.Module):
    """The drift of `dy = (1 + eta**2) eps_hat ds + eta sqrt(2 s) dW` with `s` decreasing, as a level.

    The law of `y` at every `s` is the same for all `eta`, the `stochasticity`: 0 is the probability flow, 1 the
    reverse SDE, and `eta` that of DDIM (Song, Meng & Ermon 2021, equation 16) in the limit of small
    steps. In Karras et al. 2022, equation 6, it is `beta = eta**2 / sigma`.

    **Arguments:** `predictor`, a [`mlem_jax.diffusion.NoisePredictor`][], and `stochasticity`.

    To be used with `reverse_diffusion(path, stochasticity)` as the noise, or through
    [`mlem_jax.diffusion.sampling_terms`][], which puts both together.

    Raises `ValueError` for a negative stochasticity or one that is not finite.
    """

    predictor: NoisePredictor
    stochasticity: float | int | Array

    def __check_init__(self):
        _check_stochasticity(self.stochasticity)

    def __call__(self, t: RealScalarLike, y: Float[Array, "..."], args: PyTree) -> Float[Array, "..."]:
        return (1 + self.stochasticity**2) * ProbabilityFlow(self.predictor)(t, y, args)


def _check_stochasticity(stochasticity: float | int | Array) -> None:
    if isinstance(stochasticity, float | int) and not 0 <= stochasticity < math.inf:
        raise ValueError(
            f"stochasticity={stochasticity}; a number of at least 0 is expected: 0 for the probability flow, "
            "1 for the reverse SDE."
        )


def reverse_diffusion(
    brownian_motion: diffrax.AbstractPath, stochasticity: float | int | Array = 1.0
) -> diffrax.ControlTerm:
    """The noise of the reverse SDE, `stochasticity * sqrt(2 s) dW`, for a Brownian motion of the state's shape."""
    _check_stochasticity(stochasticity)

    def diffusion(s: RealScalarLike, y: Float[Array, "..."], args: object) -> lx.DiagonalLinearOperator:
        scale = stochasticity * jnp.sqrt(2 * jnp.asarray(s, y.dtype))
        return lx.DiagonalLinearOperator(jnp.broadcast_to(scale, y.shape))

    return diffrax.ControlTerm(diffusion, brownian_motion)


def sampling_terms(
    *predictors: NoisePredictor,
    stochasticity: float | int = 0.0,
    brownian_motion: diffrax.AbstractPath | None = None,
    costs: Numbers | None = None,
) -> MultilevelTerm | diffrax.MultiTerm:
    """What `diffrax.diffeqsolve` takes to sample from `s_max` down to `s_min` with these levels.

    !!! example

        ```python
        terms = sampling_terms(NoisePredictor(small, FlowMatching(), "velocity"), large_predictor)
        diffrax.diffeqsolve(terms, MLEM([1.0, 0.1], key=key), ts[0], ts[-1], None, y0, stepsize_controller=StepTo(ts))
        ```

    **Arguments:**

    - `*predictors`: [`mlem_jax.diffusion.NoisePredictor`][]s, cheapest first. Their processes may differ.
    - `stochasticity`: 0 for the probability flow, 1 for the reverse SDE, see
        [`mlem_jax.diffusion.StochasticDrift`][].
    - `brownian_motion`: of the state's shape, such as `GridBrownianPath(ts, shape, key=key)`; not used at
        stochasticity 0.
    - `costs`: of one evaluation of each level, see [`mlem_jax.MultilevelTerm`][].

    Raises `ValueError` for something that is not a predictor, a negative stochasticity, or a positive one
    without a Brownian motion.
    """
    for k, predictor in enumerate(predictors):
        if not isinstance(predictor, NoisePredictor):
            raise ValueError(
                f"Level {k + 1} of sampling_terms is a {type(predictor).__name__}; a NoisePredictor is expected. "
                "Write NoisePredictor(network, process, prediction)."
            )
    term = MultilevelTerm(*sampling_drifts(predictors, stochasticity), costs=costs)
    if stochasticity == 0:
        return term
    if brownian_motion is None:
        raise ValueError(
            f"stochasticity={stochasticity} needs noise. Write sampling_terms(..., "
            "brownian_motion=mlem_jax.GridBrownianPath(ts, y0.shape, key=key))."
        )
    return diffrax.MultiTerm(term, reverse_diffusion(brownian_motion, stochasticity))


def sampling_drifts(
    predictors: Sequence[NoisePredictor], stochasticity: float | int
) -> tuple[ProbabilityFlow | ReverseDrift | StochasticDrift, ...]:
    """The levels of `sampling_terms`, whose identity a calibration stores."""
    _check_stochasticity(stochasticity)
    if stochasticity == 0:
        return tuple(map(ProbabilityFlow, predictors))
    if stochasticity == 1:
        return tuple(map(ReverseDrift, predictors))
    return tuple(StochasticDrift(predictor, stochasticity) for predictor in predictors)


class NoisyTerms(eqx.Module):
    """Terms of the reverse SDE for a single image, with a separate Brownian path for each key: what
    [`mlem_jax.calibrate`][] takes to give every pilot its own noise.

    **Arguments:** `term`, a drift for the reverse SDE; `ts`, the path's grid; `shape` of the state;
    `stochasticity`, that of the drift.
    """

    term: MultilevelTerm
    ts: Float[Array, " times"]
    shape: tuple[int, ...] = eqx.field(static=True)
    stochasticity: float = eqx.field(static=True, default=1.0)

    def __call__(self, key: PRNGKeyArray) -> diffrax.MultiTerm:
        path = GridBrownianPath(self.ts, self.shape, key=key)
        return diffrax.MultiTerm(self.term, reverse_diffusion(path, self.stochasticity))
