"""Hierarchies of drifts whose gamma is known by construction, and the methods that study 1 compares on them."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _methods import Batch, marching, Method, multilevel, Shared, stochastic_runge_kutta
from _problems import random_feature_levels, RandomFeatures
from _rivals import Euler, Heun, march, Plain
from jaxtyping import Array

import mlem_jax as ml

DIM, END, NOISE = 64, 2.0, 0.5
COINS = ("independent", "stratified", "systematic", "midpoint")
# With a larger probability of the finest level a solve costs more than half of Euler in the same steps.
MOST_OFTEN = 0.5
# Firings of the finest level beyond this number are tried with independent coins only: other coins have reached the
# finest level's own error by then.
MANY = 24
# Midpoint coins with steps of second order.
SECOND = "midpoint, MLAB2"


class Together(eqx.Module):
    """The drift of one state, vectorised over a batch."""

    level: RandomFeatures

    def __call__(self, t: Any, y: Array, args: Any) -> Array:
        return jax.vmap(lambda one: self.level(t, one, args))(y)


class Constant(eqx.Module):
    """Noise of constant size."""

    size: float = eqx.field(static=True)

    def __call__(self, t: Array) -> Array:
        return jnp.full_like(t, self.size)


def of_size(field: Array, size: float = 1.0) -> Array:
    """Coefficients scaled such that the field with random phases has this size (RMS of a component). The size of a
    field of few terms would otherwise be random."""
    return field * size * (2.0 * DIM / jnp.sum(field**2)) ** 0.5


def with_rest(finest: RandomFeatures, seed: int) -> RandomFeatures:
    """The finest level plus one field whose size is that of all further fields together."""
    width = 512
    keys = jr.split(jr.fold_in(jr.key(seed), 1000), 3)
    # sum of 4**-j over j >= count is 4**-count times 4/3.
    rest = of_size(jr.normal(keys[1], (DIM, width)), (4 / 3) ** 0.5)
    return RandomFeatures(
        (*finest.inner, jr.normal(keys[0], (width, DIM)) / DIM**0.5),
        (*finest.outer, rest),
        (*finest.phase, jr.uniform(keys[2], (width,), maxval=2 * jnp.pi)),
    )


def hierarchy(gamma: float, num_levels: int, width: int, sde: bool, seed: int) -> tuple[Shared, Together]:
    """A problem, and the drift that defines its exact solution."""
    drawn, costs = random_feature_levels(gamma=gamma, num_levels=num_levels, dim=DIM, width=width, seed=seed)
    levels = [RandomFeatures(d.inner, tuple(of_size(field) for field in d.outer), d.phase) for d in drawn]
    problem = Shared(
        f"gamma {gamma:g}, {'SDE' if sde else 'ODE'}",
        tuple(Together(level) for level in levels),
        tuple(c / costs[-1] for c in costs),
        jnp.linspace(0.0, END, 8 * 2**num_levels + 1),
        Constant(NOISE) if sde else None,
        (DIM,),
        1.0,
    )
    return problem, Together(with_rest(levels[-1], seed))


def accurate(problem: Shared, drift: Any, batch: Batch) -> Array:
    """The end states of a drift on the whole fine grid, by a method of higher order than those compared."""
    if problem.diffusion is None:
        return march(Heun(Plain(drift, 1.0)), np.asarray(problem.ts), batch.y0)[0]()
    one = problem._replace(levels=(drift,), costs=(1.0,))
    prepared = stochastic_runge_kutta(one, "", "", diffrax.ShARK(), problem.ts).prepare(batch, 0)
    return prepared.read(prepared.call())[0]


def fall(coins: str, gamma: float, sde: bool) -> float:
    """The exponent of two with which the best probabilities decrease from level to level. They minimise
    `C_k / H + lambda E_k(H)` for the error `E_k(H)` of a level in windows of length `H` (docs/theory.md)."""
    if coins == "independent":
        return 1 + gamma / 2
    if coins == "stratified" and not sde:
        return (gamma + 2) / 4
    if coins in ("midpoint", SECOND) and not sde:
        return (gamma + 1) / 3
    return (gamma + 2) / 3


def make_coins(name: str, key: Array, count: int) -> ml.AbstractCoins:
    """The coins of a method."""
    if name == "independent":
        return ml.IndependentCoins()
    if name == "stratified":
        return ml.StratifiedCoins()
    # Offsets are given as arrays, so that both kinds share one compilation. SystematicCoins() draws uniform offsets.
    return ml.SystematicCoins(jr.uniform(key, (count,)) if name == "systematic" else jnp.full(count, 0.5))


def methods(
    problem: Shared,
    gamma: float,
    *,
    firings: tuple[float, ...],
    steeper: tuple[float, ...],
    steps_of_level: tuple[int, ...],
) -> list[Method]:
    """All methods with all settings. ML-EM on K levels has `steps_of_level * 2**K` steps (about `2**(K/2)` for steps of
    second order), expected `firings` of level K, and probabilities that decrease with the theory's exponent plus one of
    `steeper`."""
    count, sde, fine = len(problem.levels), problem.diffusion is not None, np.asarray(problem.ts)
    found = []
    for level, cost in enumerate(problem.costs):
        plain = Plain(problem.levels[level], cost)
        for power in range(2, level + 5):
            ts = fine[:: (len(fine) - 1) // 2**power]
            setting = f"level {level + 1}, {2**power} steps"
            found.append(marching("Euler", setting, Euler(plain, problem.diffusion), ts))
            if not sde and power < level + 4:
                found.append(marching("Heun", setting, Heun(plain), ts))
    for kept in range(2, count + 1):
        above = kept - 1 - np.arange(kept)
        for multiple in steps_of_level:
            for coins in (*COINS, SECOND):
                # Errors of second order decrease with the square of the number of steps.
                steps = multiple * 2 ** (kept // 2 + 1 if coins == SECOND else kept)
                ts = fine[:: (len(fine) - 1) // steps]
                for power in (fall(coins, gamma, sde) + more for more in steeper):
                    for number in firings:
                        p = np.minimum(1.0, number / steps * 2.0 ** (power * above))
                        p[0] = 1.0
                        if p[-1] > MOST_OFTEN or (number > MANY and coins != "independent"):
                            continue

                        def solver(key: Array, p: np.ndarray = p, coins: str = coins) -> ml.MLEM | ml.MLAB2:
                            made = make_coins(coins, jr.fold_in(key, 1), len(p))
                            return (ml.MLAB2 if coins == SECOND else ml.MLEM)(p, coins=made, key=key)

                        setting = f"{kept} levels, {steps} steps, {number:g} firings, power {power:.2f}"
                        random = coins not in ("midpoint", SECOND)
                        found.append(
                            multilevel(problem, coins, setting, solver, ts, range(kept), random=random)
                        )
    return found
