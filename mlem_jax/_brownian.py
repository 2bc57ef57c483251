"""A Brownian path on a grid of times."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ._checks import as_grid, as_key
from ._custom_types import Numbers, RealScalarLike

_OFF_GRID = (
    "GridBrownianPath was asked for a time that is not on its grid. Let all steps begin and end on the "
    "times given as ts (StepTo(ts[::m]), or dt0 a multiple of the spacing)."
)
# A time may differ from its grid point by this fraction of the cell: times that are sums of many steps are rounded.
# A thousand additions of 1e-3 in float32 end 0.9% of a step away from 1 (test_brownian.py).
_TOLERANCE = 0.01


class GridBrownianPath(diffrax.AbstractBrownianPath):
    """Brownian motion whose increments are indexed by their position on a fine grid.

    Solves that step through `ts`, through every second point of it, and so on, all use the same path, in any order and
    under every adjoint. Strong errors can therefore be measured by comparing two solves. A step draws one normal number
    per component and cell of the grid that it covers, so a solve has the same number of draws for every step size.
    With steps of one cell the cost is about that of [`diffrax.UnsafeBrownianPath`][] (measured by
    `benchmarks/overhead.py`). The path has no Lévy areas: use it with solvers that need increments only (Euler, Heun,
    Milstein, MLEM).

    **Arguments:**

    - `ts`: the finest grid, `(N + 1,)`, strictly increasing or decreasing.
    - `shape`: a tuple of integers, or a PyTree of `jax.ShapeDtypeStruct`.
    - `key`: random key, keyword-only.

    Raises `ValueError` for a grid that is not strictly monotone, a dtype that is not floating or a bad key; at run
    time, an error if a solve asks for a time off the grid.
    """

    ts: Float[Array, " cells_plus_1"]
    shape: PyTree[jax.ShapeDtypeStruct] = eqx.field(static=True)
    key: PRNGKeyArray
    levy_area: type[diffrax.BrownianIncrement] = eqx.field(static=True)

    def __init__(
        self,
        ts: Numbers,
        shape: tuple[int, ...] | PyTree[jax.ShapeDtypeStruct],
        *,
        key: PRNGKeyArray,
    ):
        self.ts = as_grid("GridBrownianPath", ts)
        if isinstance(shape, tuple) and all(isinstance(n, int) for n in shape):
            shape = jax.ShapeDtypeStruct(shape, jnp.result_type(float))
        self.shape = shape
        self.key = as_key("GridBrownianPath", key)
        self.levy_area = diffrax.BrownianIncrement
        if any(not jnp.issubdtype(s.dtype, jnp.floating) for s in jtu.tree_leaves(shape)):
            raise ValueError(f"GridBrownianPath needs floating-point shapes and was given {shape}.")

    @property
    def t0(self) -> Array:
        """The smallest time of the grid."""
        return jnp.minimum(self.ts[0], self.ts[-1])

    @property
    def t1(self) -> Array:
        """The largest time of the grid."""
        return jnp.maximum(self.ts[0], self.ts[-1])

    def _increasing(self) -> Float[Array, " cells_plus_1"]:
        return jnp.where(self.ts[0] < self.ts[-1], self.ts, self.ts[::-1])

    def _index(self, ts: Float[Array, " cells_plus_1"], t: Array) -> Int[Array, ""]:
        """The index of the grid point nearest to `t`; an error at run time if that is not close to `t`."""
        middles = 0.5 * (ts[1:] + ts[:-1])
        # A comparison with all of them is one vectorised pass, which is faster here than a binary search.
        index = jnp.sum(t > middles)
        cell = jnp.minimum(index, ts.shape[0] - 2)
        off = jnp.abs(t - ts[index]) > _TOLERANCE * (ts[cell + 1] - ts[cell])
        return eqx.error_if(index, off, _OFF_GRID)

    @eqx.filter_jit
    def evaluate(
        self,
        t0: RealScalarLike,
        t1: RealScalarLike | None = None,
        left: bool = True,
        use_levy: bool = False,
    ) -> PyTree[Array] | diffrax.BrownianIncrement:
        """The increment between two grid points, `w(t1) - w(t0)`; without `t1` the increment from the first grid point
        to `t0`. As [`diffrax.AbstractBrownianPath.evaluate`][]."""
        del left
        ts = jax.lax.stop_gradient(self._increasing())
        if t1 is None:
            t0, t1 = ts[0], t0
        t0, t1 = (jax.lax.stop_gradient(jnp.asarray(t)).astype(ts.dtype) for t in (t0, t1))
        start, stop = self._index(ts, t0), self._index(ts, t1)
        sign = jnp.where(start <= stop, 1, -1)
        start, stop = jnp.minimum(start, stop), jnp.maximum(start, stop)

        def add(index: Array, total: PyTree[Array]) -> PyTree[Array]:
            key = jr.fold_in(self.key, index)
            scale = jnp.sqrt(ts[index + 1] - ts[index])
            leaves, structure = jtu.tree_flatten(total)
            keys = [jr.fold_in(key, i) for i in range(len(leaves))] if len(leaves) > 1 else [key]
            drawn = [
                leaf + scale.astype(leaf.dtype) * jr.normal(k, leaf.shape, leaf.dtype)
                for k, leaf in zip(keys, leaves, strict=True)
            ]
            return jtu.tree_unflatten(structure, drawn)

        zeros = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), self.shape)
        total = jax.lax.fori_loop(start, stop, add, zeros)
        w = jtu.tree_map(lambda x: sign.astype(x.dtype) * x, total)
        if use_levy:
            dt = jtu.tree_map(lambda x: (t1 - t0).astype(x.dtype), w)
            return diffrax.BrownianIncrement(dt=dt, W=w)
        return w
