"""The drifts of sampling a diffusion model, in the variables `(y, s)` of `_process.py`."""

import diffrax
import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PRNGKeyArray

from .._brownian import GridBrownianPath
from .._term import MultilevelTerm
from .._types import RealScalarLike
from ._process import NoisePredictor


class ProbabilityFlow(eqx.Module):
    """The drift of the probability-flow ODE, `dy/ds = eps_hat(alpha y, s)`, as a level.

    Plain Euler from `s_max` down to `s_min` on this drift is DDIM (Song, Meng & Ermon 2021), so ML-EM is
    multilevel DDIM.

    **Arguments:** `predictor`, a [`mlem_jax.diffusion.NoisePredictor`][].

    Called as `(s, y, args) -> dy/ds` on one image or a batch of them; `args` is not used.
    """

    predictor: NoisePredictor

    def __call__(self, t: RealScalarLike, y: Float[Array, "..."], args: object) -> Float[Array, "..."]:
        del args
        s = jnp.asarray(t, y.dtype)
        return self.predictor(self.predictor.process.alpha(s) * y, s)


class ReverseDrift(eqx.Module):
    """The drift of the reverse SDE, `dy = 2 eps_hat ds + sqrt(2 s) dW` with `s` decreasing, as a level.

    To be used with [`mlem_jax.diffusion.reverse_diffusion`][] as the noise. Called like
    [`mlem_jax.diffusion.ProbabilityFlow`][].
    """

    predictor: NoisePredictor

    def __call__(self, t: RealScalarLike, y: Float[Array, "..."], args: object) -> Float[Array, "..."]:
        return 2 * ProbabilityFlow(self.predictor)(t, y, args)


def reverse_diffusion(brownian_motion: diffrax.AbstractPath) -> diffrax.ControlTerm:
    """The noise of the reverse SDE, `sqrt(2 s) dW`, for a Brownian motion of the state's shape."""

    def diffusion(s: RealScalarLike, y: Float[Array, "..."], args: object) -> lx.DiagonalLinearOperator:
        return lx.DiagonalLinearOperator(jnp.broadcast_to(jnp.sqrt(2 * jnp.asarray(s, y.dtype)), y.shape))

    return diffrax.ControlTerm(diffusion, brownian_motion)


class NoisyTerms(eqx.Module):
    """Terms of the reverse SDE for a single image, with a Brownian path of its own for each key: what
    [`mlem_jax.calibrate`][] takes to give every pilot its own noise.

    **Arguments:** `term`, a drift for the reverse SDE; `ts`, the path's grid; `shape` of the state.
    """

    term: MultilevelTerm
    ts: Float[Array, " times"]
    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray) -> diffrax.MultiTerm:
        path = GridBrownianPath(self.ts, self.shape, key=key)
        return diffrax.MultiTerm(self.term, reverse_diffusion(path))
