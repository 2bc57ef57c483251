"""A multilevel solver of second order in the steps, as a diffrax solver."""

from collections.abc import Callable
from typing import Any, ClassVar, get_args, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .._batching import refuse_batch
from .._coins import AbstractCoins, SystematicCoins
from .._custom_types import Args, Numbers, RealScalarLike, TimeVariable, Y
from .._probabilities import AbstractProbabilities
from .._term import find_multilevel_term, LevelControl, split_terms
from .base import AbstractMultilevelSolver
from .extrapolation import extrapolation_factor
from .results import not_finite
from .state import LastStep, MLAB2State

_NO_LOGARITHM = (
    "MLAB2 with time_variable='log' was given a step from, to or across time 0, where the logarithm of the time has no "
    "value. Begin or end at a small time instead of 0, or write time_variable='time'."
)
_OTHER_PROBABILITIES = (
    "MLAB2 was given the solver_state of a solve with other probabilities: those of one of the two solves are all 1, "
    "and it remembers no corrections. Continue a solve with the probabilities that began it."
)
_OTHER_VARIABLE = (
    "MLAB2 was given the solver_state of a solve with time_variable={!r} and has time_variable={!r}; continue a solve "
    "with the time variable that it began with."
)
_NO_BASE = (
    "MLAB2 needs the cheapest level in every step, a first probability of 1, and was given a smaller one. "
    "Set it to 1, or use mlem_jax.MLEM, which needs no level in every step."
)


def check_time_variable(name: str, value: str) -> None:
    """Raises `ValueError` for a time variable that `MLAB2` does not have; the message begins with `name`."""
    if value not in get_args(TimeVariable):
        raise ValueError(
            f"{name} was given time_variable={value!r}; one of {get_args(TimeVariable)} is expected."
        )


class MLAB2(AbstractMultilevelSolver):
    r"""ML-EM with the two-step Adams-Bashforth method in place of Euler's.

    $$x_{n+1} = x_n + h_n \Bigl[b_n + \tfrac{r_n}{2} (b_n - b_{n-1})
        + \sum_{k > 1} w_{k,n} D_k(t_n + \tfrac{h_n}{2}, \hat x_n)\Bigr] + g(t_n, x_n) \Delta W_n$$
    $$D_k = f^k - f^{k-1},\quad b_n = f^1(t_n, \bar x_n),\quad
        r_n = \frac{c(t_{n+1}) - c(t_n)}{c(t_n) - c(t_{n-1})}$$
    $$\bar x_n = x_n + \sum_{k > 1} m_{k,n} \tfrac{h_n}{p_{k,n}} \bar D_k,\quad
        \hat x_n = x_n + \tfrac{h_n}{2} \bigl[b_n + \tfrac{r_n}{4} (b_n - b_{n-1})\bigr]
        + \sum_{k > 1} \bigl(m_{k,n} + \tfrac{p_{k,n}}{2}\bigr) \tfrac{h_n}{p_{k,n}} \bar D_k$$

    The cheapest level is evaluated in every step (its probability must be 1) and integrated to second order. Therefore
    far fewer steps suffice than with [`mlem_jax.MLEM`][], and most of the cost goes to corrections. Corrections are
    evaluated and applied in the middle of a step. In a step in which level 2 fires, the cheapest level is evaluated a
    second time.

    A correction is applied in one step for a whole window. The state is therefore half a correction behind the
    corrected trajectory just before this step, and half a correction ahead just after it. To compensate, levels are
    evaluated at an estimate of the corrected trajectory: the state plus `m_k` times the last correction of level `k`,
    where `m_k` is the expected minus the actual number of its firings. This makes the coin error of second order in the
    window, too; on diffusion models it halves the coin error.

    `MLAB2` with `[1.0]` or `[1.0, 1.0, ...]` is the Adams-Bashforth method on the finest level. With the time variable
    `c(t) = t` this is the formula for unequal steps of Hairer, Nørsett & Wanner (Solving Ordinary Differential
    Equations I, section III.5). With `time_variable="log"` the drift is extrapolated linearly in `c(t) = log |t|`. For
    a drift that varies on a logarithmic time scale, as that of a diffusion model between `s = 80` and `s = 0.01`, this
    at least halves the error of the same steps. With `[1.0]` on a probability flow `dy/ds = noise` the method is
    DPM-Solver-2M in noise prediction. DPM-Solver++(2M) (Lu et al. 2022), of the same order and similar accuracy,
    extrapolates the clean image instead: it has the same steps on `dz/du = clean image` with `z = y / s` and `u = 1 /
    s`.

    Like `MLEM` it is a drop-in replacement for [`diffrax.Euler`][]. The first step, and a step after a jump, have
    `r_n = 0`. If the grid is not smooth, as next to close neighbours or where long and short steps alternate, the
    difference of two drifts is noise, or a jump, rather than a slope. An `r_n` above 1 then falls towards its inverse,
    and the error is about that of Euler instead of larger.

    For ODEs the order in the step size is 2. For additive noise the strong order is 1, with the least error that the
    increments of a path over the steps allow: the drift sees the noise of a step half a step late on average, which the
    difference `b_n - b_{n-1}` corrects. The error of corrections and coins is described at
    [`mlem_jax.SystematicCoins`][] and [`mlem_jax.MLEM`][].

    The stability interval is half of Euler's: for a drift `-a x`, steps must be shorter than `1 / a`.
    With additive noise the error is smaller than Euler's for steps shorter than about `1 / (4 a)`.

    **Arguments:** as for [`mlem_jax.MLEM`][], where the first probability must be 1; and `time_variable`, the variable
    in which the drift is extrapolated linearly, `"time"` or `"log"`.

    Raises the errors of `MLEM`, `ValueError` for another time variable, and an error at run time for a first
    probability below 1 or a time of 0 with `time_variable="log"`.
    """

    state_cls: ClassVar[type[MLAB2State]] = MLAB2State

    probabilities: AbstractProbabilities
    coins: AbstractCoins
    _key: PRNGKeyArray | None
    time_variable: TimeVariable = eqx.field(static=True)
    shared: bool = eqx.field(static=True)
    record: int = eqx.field(static=True)
    check_finite: bool = eqx.field(static=True)

    def __init__(
        self,
        probabilities: Numbers | AbstractProbabilities | Callable[[RealScalarLike], Numbers],
        *,
        coins: AbstractCoins = SystematicCoins(offset=0.5),  # noqa: B008 (immutable)
        key: PRNGKeyArray | None = None,
        time_variable: TimeVariable = "time",
        shared: bool = True,
        record: int = 0,
        check_finite: bool = True,
    ):
        check_time_variable("MLAB2", time_variable)
        settings = self._checked_settings(probabilities, coins, key, record)
        self.probabilities, self.coins, self._key, self.record = settings
        self.time_variable = time_variable
        self.shared = shared
        self.check_finite = check_finite

    def order(self, terms: PyTree) -> int:
        """2, in the step size."""
        return 2

    def strong_order(self, terms: PyTree) -> float:
        """1/2 in the step size (1 for additive noise)."""
        return 0.5

    def init(self, terms: PyTree, t0: RealScalarLike, t1: RealScalarLike, y0: Y, args: Args) -> MLAB2State:
        """Checks the terms and returns the state before the first step."""
        return MLAB2State(**self._initial(terms, t0, t1, y0, args), last=self.no_step(t0, t1, y0))

    def no_step(self, t0: RealScalarLike, t1: RealScalarLike, y0: Y) -> LastStep:
        """The values of earlier steps, before the first step."""
        drift = jtu.tree_map(jnp.zeros_like, y0)
        length = factor = jnp.zeros((), jnp.result_type(t0, t1, float))
        if self.probabilities.every_step:
            return LastStep(drift, length, factor, time_variable=self.time_variable)
        p = jax.eval_shape(self.probabilities, t0, jnp.asarray(t1) - jnp.asarray(t0))
        above = p.shape[0] - 1
        increments = jtu.tree_map(lambda leaf: jnp.zeros((above, *leaf.shape), leaf.dtype), drift)
        with jax.numpy_dtype_promotion("standard"):
            wide = jnp.promote_types(p.dtype, length.dtype)
        deficit = jnp.zeros(above, wide)
        return LastStep(drift, length, factor, increments, deficit, time_variable=self.time_variable)

    def step(
        self,
        terms: PyTree,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
        solver_state: MLAB2State,
        made_jump: Any,
    ) -> tuple[Y, None, dict[str, Y], MLAB2State, diffrax.RESULTS]:
        """One step; as [`diffrax.AbstractSolver.step`][]."""
        place, term = find_multilevel_term(terms, "MLAB2")
        self._check_state(solver_state, term)
        if (solver_state.last.increments is None) != self.probabilities.every_step:
            raise ValueError(_OTHER_PROBABILITIES)
        if solver_state.last.time_variable != self.time_variable:
            raise ValueError(_OTHER_VARIABLE.format(solver_state.last.time_variable, self.time_variable))
        drift_term, dt, others = split_terms(terms, place, t0, t1)
        last = solver_state.last
        length = self._length(t0, t1).astype(last.length.dtype)
        factor = extrapolation_factor(length, last, made_jump)
        step = _Step(drift_term, t0, t1, dt, y0, args, factor)
        num_levels = len(term.levels)
        # diffeqsolve runs backward solves in the time -t; probabilities are functions of t itself.
        t = jnp.where(dt >= 0, t0, -t0)
        if self.probabilities.every_step:
            counts = (jnp.arange(num_levels) == num_levels - 1).astype(jnp.int32)
            fired = jnp.ones(num_levels, bool)
            number, coins = solver_state.draws, solver_state.coins
            now = LastStep(step.term.vf(t0, y0, args), length, factor, time_variable=self.time_variable)
            corrections = []
        else:
            p, weights, coefficients, _, fired, number, coins = self._draw_coins(t, jnp.abs(dt), solver_state)
            bounds = self.probabilities.bounds
            if bounds is None or bounds[0][0] < 1:
                p = self._check(p, p[0] < 1, _NO_BASE)
            counts, now, correction = self._corrected(step, last, length, p, weights, coefficients, fired)
            corrections = [correction]
        noise = [other.vf_prod(t0, y0, args, control) for other, control in others]
        y1 = _advance(1.0, dt, factor, y0, now.drift, last.drift)
        y1 = jtu.tree_map(lambda y, *more: sum(more, start=y), y1, *noise, *corrections)
        # Steps of length zero, in which a trajectory waits for the others of its batch, are not remembered.
        now = jtu.tree_map(lambda new, old: jnp.where(length > 0, new, old), now, last)
        result = not_finite("MLAB2", y0, y1) if self.check_finite else diffrax.RESULTS.successful
        counters = self._next(solver_state, t, counts, fired, number, coins)
        return y1, None, dict(y0=y0, y1=y1), MLAB2State(**counters, last=now), result

    def _corrected(
        self,
        step: "_Step",
        last: LastStep,
        length: Array,
        p: Float[Array, " levels"],
        weights: Float[Array, " levels"],
        coefficients: Float[Array, " levels"],
        fired: Bool[Array, " levels"],
    ) -> tuple[Int[Array, " levels"], LastStep, Y]:
        """The number of evaluations of each level, the values for later steps, and the sum of the corrections of this
        step."""
        deficit = last.deficit
        assert deficit is not None
        above, weights = (x[1:].astype(deficit.dtype) for x in (p, weights))
        windows = jnp.asarray(step.dt).astype(deficit.dtype) / above
        one, base = jnp.ones((), deficit.dtype), jnp.arange(len(p), dtype=jnp.int32) == 0

        def on_path(y: Y, due: Array) -> Y:
            return _add(y, due * windows, last.increments)

        at_path = on_path(step.y, deficit)
        drift = step.term.vf_prod(
            step.t0, at_path, step.args, LevelControl(one, base.astype(one.dtype), base)
        )
        # Evaluations in the middle of the step, where the increment of level 2 also needs the base.
        runs = jnp.where(base, coefficients - 1, coefficients) != 0
        runs = refuse_batch(runs, self._batched_message()) if self.shared else runs
        counts = base.astype(jnp.int32) + runs.astype(jnp.int32)
        middle = _advance(0.5, step.dt, step.factor, on_path(step.y, deficit + above / 2), drift, last.drift)
        control = LevelControl(one, _differences(runs), runs)
        found = step.term.vf_prod(step.t0 + 0.5 * (step.t1 - step.t0), middle, step.args, control)
        seen = jtu.tree_map(
            lambda new, old: jnp.where(_along(fired[1:], new), new, old), found, last.increments
        )
        deficit = deficit + above * (1 - weights)
        now = LastStep(drift, length, step.factor, seen, deficit, time_variable=self.time_variable)
        return counts, now, _add(None, weights * above * windows, found)

    def _length(self, t0: RealScalarLike, t1: RealScalarLike) -> Array:
        """The length of a step in the time variable."""
        if self.time_variable == "time":
            return jnp.abs(jnp.asarray(t1) - t0)
        # In backward solves both times have the other sign.
        t0, t1 = jnp.asarray(t0), jnp.asarray(t1)
        return jnp.abs(jnp.log(self._check(t1, t0 * t1 <= 0, _NO_LOGARITHM) / t0))


class _Step(NamedTuple):
    """A step from `t0` to `t1`: the multilevel term, the signed length in time, the initial state, the arguments, and
    the factor that multiplies the last change of the drift."""

    term: Any
    t0: RealScalarLike
    t1: RealScalarLike
    dt: RealScalarLike
    y: Y
    args: Args
    factor: Array


def _differences(runs: Array) -> Array:
    """The coefficients of the levels' drifts in the increments of all levels but the cheapest, `(K - 1, K)`.

    An increment is the difference between an evaluated level and the next cheaper evaluated one. A level that fires
    together with the next finer one at the same weight is not evaluated; the finer level's increment then contains
    both."""
    rows = []
    for k in range(1, len(runs)):
        row, free = [jnp.zeros((), bool)] * len(runs), runs[k]
        for j in reversed(range(k)):
            row[j] = free & runs[j]
            free = free & ~runs[j]
        row = -jnp.stack(row).astype(float)
        rows.append(row.at[k].set(runs[k].astype(row.dtype)))
    return jnp.stack(rows) if rows else jnp.zeros((0, 1))


def _along(factors: Array, leaf: Array) -> Array:
    """One factor per entry of the leaf's leading axis, reshaped to broadcast against the leaf."""
    return factors.reshape(-1, *[1] * (leaf.ndim - 1))


def _add(y: Y | None, factors: Array, increments: PyTree) -> Y:
    """The sum of all increments times their factors, plus the state if one is given."""
    sums = jtu.tree_map(lambda d: jnp.sum(_along(factors, d).astype(d.dtype) * d, axis=0), increments)
    return sums if y is None else jtu.tree_map(jnp.add, y, sums)


def _advance(part: float, dt: RealScalarLike, factor: Array, y: Y, new: Y, old: Y) -> Y:
    """The state after a fraction of the step, with the drift extrapolated linearly from this step and the last one."""

    def leaf(y: Array, new: Array, old: Array) -> Array:
        h, slope = (jnp.asarray(x).astype(y.dtype) for x in (dt, factor))
        return y + part * h * (new + 0.5 * part * slope * (new - old))

    return jtu.tree_map(leaf, y, new, old)
