"""The states of the multilevel solvers with coins."""

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, PyTree


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
    evaluations: eqx.AbstractVar[Int[Array, "*batch levels"]]
    costs: eqx.AbstractVar[Float[Array, "*batch levels"] | None]
    firings: eqx.AbstractVar[Firings | None]


class MLEMState(AbstractMultilevelState):
    """The solver state of [`mlem_jax.MLEM`][]. Pass it to `diffeqsolve` to continue a solve.

    - `step`: number of steps taken, including those of the solves that were continued.
    - `draws`: number of times that coins were drawn. It equals `step`, except if a `vmap` with shared coins continues
        trajectories of different lengths: the draws then continue from those of the longest one.
    - `coins`: the state of the coin policy.
    - `evaluations`: how often each level was evaluated, `(K,)`.
    - `costs`: the term's costs, `(K,)`, or `None`.
    - `firings`: the record asked for by `record=...`, or `None`.
    """

    step: Int[Array, "*batch"]
    draws: Int[Array, "*batch"]
    coins: PyTree[Array]
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
    """

    drift: PyTree[Array]
    length: Float[Array, "*batch"]
    factor: Float[Array, "*batch"]
    increments: PyTree[Array] | None = None
    deficit: Float[Array, "*batch levels_above"] | None = None


class MLAB2State(AbstractMultilevelState):
    """The solver state of [`mlem_jax.MLAB2`][]. Pass it to `diffeqsolve` to continue a solve.

    It has the fields of [`mlem_jax.MLEMState`][], and `last`, the values from earlier steps that the next step uses.
    """

    step: Int[Array, "*batch"]
    draws: Int[Array, "*batch"]
    coins: PyTree[Array]
    evaluations: Int[Array, "*batch levels"]
    costs: Float[Array, "*batch levels"] | None
    firings: Firings | None
    last: LastStep
