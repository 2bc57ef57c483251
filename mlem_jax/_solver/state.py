"""What multilevel solvers carry from step to step."""

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, PyTree


class Firings(eqx.Module):
    """A record of the last steps of a solve.

    - `times`: start of each recorded step, `(N,)`; unused entries are NaN.
    - `active`: which levels were evaluated in it, `(N, K)`.
    - `fired`: which levels' coins came up, `(N, K)`.
    """

    times: Float[Array, "*batch steps"]
    active: Bool[Array, "*batch steps levels"]
    fired: Bool[Array, "*batch steps levels"]


class AbstractMultilevelState(eqx.Module):
    """What the states of all multilevel solvers with coins hold; see [`mlem_jax.MLEMState`][]."""

    step: eqx.AbstractVar[Int[Array, "*batch"]]
    toss: eqx.AbstractVar[Int[Array, "*batch"]]
    coins: eqx.AbstractVar[PyTree[Array]]
    evaluations: eqx.AbstractVar[Int[Array, "*batch levels"]]
    costs: eqx.AbstractVar[Float[Array, "*batch levels"] | None]
    firings: eqx.AbstractVar[Firings | None]


class MLEMState(AbstractMultilevelState):
    """The state that [`mlem_jax.MLEM`][] carries from step to step; pass it back to continue a solve.

    - `step`: number of steps taken, over all solves that were continued.
    - `toss`: number of the next toss of the coins. The same as `step`, except in a `vmap` with shared coins
        that was continued from trajectories of different lengths: it goes on from the longest one.
    - `coins`: the state of the coin policy.
    - `evaluations`: how often each level was evaluated, `(K,)`.
    - `costs`: the term's costs, `(K,)`, or `None`.
    - `firings`: the record asked for by `record=...`, or `None`.
    """

    step: Int[Array, "*batch"]
    toss: Int[Array, "*batch"]
    coins: PyTree[Array]
    evaluations: Int[Array, "*batch levels"]
    costs: Float[Array, "*batch levels"] | None
    firings: Firings | None


class LastStep(eqx.Module):
    """What [`mlem_jax.MLAB2`][] remembers of the steps before.

    - `drift`: the base's, at the start of the last step, like the state.
    - `length`: of the last step, in the solver's time variable; zero before the first one.
    - `increments`: `f^k - f^{k-1}` when level `k` was last looked at, like the state with a leading axis of `K - 1`;
        zeros before that. `None` where all probabilities are 1.
    - `deficit`: the expected minus the actual number of looks at each of these levels, `(K - 1,)`; or `None`.
    """

    drift: PyTree[Array]
    length: Float[Array, "*batch"]
    increments: PyTree[Array] | None = None
    deficit: Float[Array, "*batch levels_above"] | None = None


class MLAB2State(AbstractMultilevelState):
    """The state that [`mlem_jax.MLAB2`][] carries from step to step; pass it back to continue a solve.

    The fields of [`mlem_jax.MLEMState`][], and `last`: what is remembered of the steps before.
    """

    step: Int[Array, "*batch"]
    toss: Int[Array, "*batch"]
    coins: PyTree[Array]
    evaluations: Int[Array, "*batch levels"]
    costs: Float[Array, "*batch levels"] | None
    firings: Firings | None
    last: LastStep
