"""The arguments of `calibrate`, checked and converted to pilots."""

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, PRNGKeyArray, PyTree

from .._checks import as_grid
from .._custom_types import Args, Y
from .._term import as_terms_of_key, find_multilevel_term, MakeTerms
from .pilots import PilotInputs, Pilots

# Single levels are solved with all, half and a quarter of the steps.
_STEPS_DIVISOR = 4


def make_pilots(
    terms: PyTree | MakeTerms,
    ts: ArrayLike,
    y0s: Y,
    args: Args,
    labels: PyTree,
    key: PRNGKeyArray,
    batch_size: int,
) -> Pilots:
    """The pilots in batches. Raises `ValueError` for arguments that do not fit together."""
    ts = as_grid("calibrate", ts).astype(jnp.result_type(float))
    if (len(ts) - 1) % _STEPS_DIVISOR:
        raise ValueError(
            f"calibrate was given {len(ts) - 1} steps; their number has to be a multiple of {_STEPS_DIVISOR}, for "
            "example ts = jnp.linspace(t0, t1, 129)."
        )
    y0s = jtu.tree_map(lambda y: _as_solved(y, ts), y0s)
    count = _count(y0s)
    make_terms = as_terms_of_key(terms)
    place, term = find_multilevel_term(make_terms(key), "calibrate")
    check_labels(labels, args, count)
    inputs = PilotInputs(jr.split(key, count), jtu.tree_map(jnp.asarray, labels))
    y0, first = jtu.tree_map(lambda leaf: leaf[0], (y0s, inputs))
    term.check_levels(ts[0], y0, first.args(args))
    batches = [
        jtu.tree_map(lambda leaf: leaf[i : i + batch_size], (y0s, inputs))  # noqa: B023
        for i in range(0, count, batch_size)
    ]
    return Pilots(make_terms, place, term, ts, args, batches)


def _as_solved(y: ArrayLike, ts: Array) -> Array:
    """An initial state with the dtype that `diffeqsolve` gives it."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.asarray(y, jnp.result_type(y, ts))


def _count(y0s: PyTree[Array]) -> int:
    """The number of pilots. Raises `ValueError` unless all arrays have the same leading axis."""
    shapes = [leaf.shape for leaf in jtu.tree_leaves(y0s)]
    counts = {shape[:1] for shape in shapes}
    if len(counts) != 1 or counts == {()} or counts == {(0,)}:
        raise ValueError(
            f"calibrate was given y0s with arrays of shapes {shapes}; all need the same leading axis, one entry for "
            "each pilot. For a single pilot write y0[None]."
        )
    return shapes[0][0]


def check_labels(labels: PyTree, args: Args, pilots: int) -> None:
    """Raises `ValueError` for labels beside `args` or unless there is one label for each pilot."""
    if labels is not None and args is not None:
        raise ValueError("Give args, the same for all pilots, or labels, one for each; not both.")
    for leaf in jtu.tree_leaves(labels):
        if jnp.shape(leaf)[:1] != (pilots,):
            raise ValueError(
                f"labels has an array of shape {jnp.shape(leaf)} for {pilots} pilots; one entry per pilot is "
                f"expected, shape ({pilots}, ...). For the same for all write args=..."
            )


def check_finite(effects: np.ndarray, ts: Array) -> None:
    """Raises `ValueError` if the effects `(steps, levels, pilots, probes)` of a pilot are not finite."""
    bad = ~np.all(np.isfinite(effects), axis=(1, 3))
    if np.any(bad):
        steps = len(ts) - 1
        raise ValueError(
            f"{int(np.sum(np.any(bad, axis=0)))} of {effects.shape[2]} pilot trajectories of Euler on the finest level "
            f"with {steps} steps, or the derivatives along them, are not finite. Calibrate with a finer ts, for "
            f"example {4 * steps} steps, or with sensitivity_level=0 if only the derivatives explode."
        )
