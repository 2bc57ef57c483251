"""The message for samples that are not finite."""

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..._term import find_multilevel_term
from .given import Given
from .sampler import Sampler


def explain_failure(sampler: Sampler, index: int, given: Given, levels: tuple[int, ...]) -> str:
    """Which level, in which step and at which time, made this sample something that is not finite."""
    place = jnp.asarray(index)
    saveat = diffrax.SaveAt(t0=True, steps=True)
    solve = eqx.filter_jit(lambda sampler: sampler.solve(sampler.group_solver(place), place, given, saveat))
    states = np.asarray(solve(sampler))
    bad = np.nonzero(~np.isfinite(states).all(axis=tuple(range(1, states.ndim))))[0]
    if not len(bad):
        return (
            f"Sample {index} is not finite in its batch, yet is finite when drawn alone: the last digits decide "
            "where it overflows. Choose a plan with more steps."
        )
    step = int(bad[0]) - 1
    s, before = sampler.ts[step], jnp.asarray(states[step])
    _, term = find_multilevel_term(sampler.terms(place, given))
    args = sampler.level_args(given)
    guilty = [
        str(level + 1)
        for level, drift in zip(levels, term.levels, strict=True)
        if not np.isfinite(np.asarray(drift(s, before, args), np.float64)).all()
    ]
    where = f"in step {step + 1} of {len(sampler.ts) - 1}, at s = {float(s):.4g}"
    if guilty:
        return (
            f"Level {' and level '.join(guilty)} returned a value that is not finite, for sample {index} {where}. "
            f"The largest entry of its input there is {float(jnp.abs(before).max()):.4g}."
        )
    return (
        f"Sample {index} overflowed {where}, although every level's value there is finite. Choose a plan with "
        "more steps."
    )
