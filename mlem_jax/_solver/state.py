"""The states of the multilevel solvers with coins, and the check that a state is of the expected kind."""

from typing import Any, cast

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._custom_types import TimeVariable


class Firings(eqx.Module):
    """A record of the last steps of a solve.

    - `times`: start of each recorded step, `(N,)`; unused entries are NaN.
    - `active`: which levels were evaluated in the step, `(N, K)`.
    - `fired`: which levels fired in the step, `(N, K)`.
    """

    times: Float[Array, "*batch steps"]
    active: Bool[Array, "*batch steps levels"]
    fired: Bool[Array, "*batch steps levels"]


class AbstractMultilevelState(eqx.Module):
    """The fields that the states of all multilevel solvers with coins have; see [`mlem_jax.MLEMState`][]."""

    step: eqx.AbstractVar[Int[Array, "*batch"]]
    draws: eqx.AbstractVar[Int[Array, "*batch"]]
    coins: eqx.AbstractVar[PyTree[Array]]
    policy: eqx.AbstractVar[str]
    evaluations: eqx.AbstractVar[Int[Array, "*batch levels"]]
    costs: eqx.AbstractVar[Float[Array, "*batch levels"] | None]
    firings: eqx.AbstractVar[Firings | None]


class MLEMState(AbstractMultilevelState):
    """The solver state of [`mlem_jax.MLEM`][]. Pass it to `diffeqsolve` to continue a solve.

    - `step`: number of steps taken, including those of the solves that were continued.
    - `draws`: number of times that coins were drawn. It equals `step`, except if a `vmap` with shared coins continues
        trajectories of different lengths: the draws then continue from those of the longest one.
    - `coins`: the state of the coin policy.
    - `policy`: the coin policy and its settings as text. A solve is continued with the same policy; numbers in arrays
        are not compared.
    - `evaluations`: how often each level was evaluated, `(K,)`.
    - `costs`: the term's costs, `(K,)`, or `None`.
    - `firings`: the record asked for by `record=...`, or `None`.
    """

    step: Int[Array, "*batch"]
    draws: Int[Array, "*batch"]
    coins: PyTree[Array]
    policy: str = eqx.field(static=True)
    evaluations: Int[Array, "*batch levels"]
    costs: Float[Array, "*batch levels"] | None
    firings: Firings | None


class LastStep(eqx.Module):
    """The values from earlier steps that the next step of [`mlem_jax.MLAB2`][] uses.

    - `drift`: the drift of the cheapest level at the start of the last step, like the state.
    - `length`: length of the last step in the solver's time variable; zero before the first step.
    - `factor`: the last step's extrapolation factor `r_n`; zero if it did not extrapolate.
    - `increments`: the last evaluated increment `f^k - f^{k-1}` of each level above the cheapest, like the state with a
        leading axis of `K - 1`; zeros before the first evaluation. `None` if all probabilities are 1.
    - `deficit`: the expected minus the actual number of firings of each of these levels, `(K - 1,)`; or `None`.
    - `time_variable`: that of `length`, `"time"` or `"log"`.
    """

    drift: PyTree[Array]
    length: Float[Array, "*batch"]
    factor: Float[Array, "*batch"]
    increments: PyTree[Array] | None = None
    deficit: Float[Array, "*batch levels_above"] | None = None
    time_variable: TimeVariable = eqx.field(static=True, kw_only=True)


class MLAB2State(AbstractMultilevelState):
    """The solver state of [`mlem_jax.MLAB2`][]. Pass it to `diffeqsolve` to continue a solve.

    It has the fields of [`mlem_jax.MLEMState`][], and `last`, the values from earlier steps that the next step uses.
    """

    step: Int[Array, "*batch"]
    draws: Int[Array, "*batch"]
    coins: PyTree[Array]
    policy: str = eqx.field(static=True)
    evaluations: Int[Array, "*batch levels"]
    costs: Float[Array, "*batch levels"] | None
    firings: Firings | None
    last: LastStep


def check_state(solver: str, expected: type[eqx.Module], state: Any, num_levels: int) -> None:
    """Raises `ValueError` unless a state is of the expected class, of a single solve, and of this number of levels."""
    if not isinstance(state, expected):
        owner = type(state).__name__
        owner = f"{owner.removesuffix('State')}'s {owner}" if owner.endswith("State") else f"a {owner}"
        raise ValueError(
            f"{solver} was given {owner} as solver_state; its own {expected.__name__} is expected. Continue a solve "
            "with the kind of solver that began it."
        )
    evaluations = cast(Any, state).evaluations
    if evaluations.ndim != 1:
        raise ValueError(
            f"{solver} was given the solver_state of a batch of {len(evaluations)} solves; that of one solve is "
            "expected. Map over it together with y0: jax.vmap(solve)(y0, solver_state)."
        )
    if len(evaluations) != num_levels:
        raise ValueError(
            f"{solver} was given the solver_state of a solve with {len(evaluations)} levels; one for the {num_levels} "
            "levels of this MultilevelTerm is expected."
        )
