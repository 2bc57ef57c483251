"""What `calibrate` is given, checked and turned into pilots."""

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, PRNGKeyArray, PyTree

from .._custom_types import Args, Y
from .._term import as_terms_of_key, find_multilevel_term, MakeTerms
from .pilots import PilotInputs, Pilots


def make_pilots(
    terms: PyTree | MakeTerms,
    ts: ArrayLike,
    y0s: Y,
    args: Args,
    labels: PyTree,
    key: PRNGKeyArray,
    batch_size: int,
) -> Pilots:
    """The pilots in batches. Raises `ValueError` for whatever does not fit together."""
    ts = jnp.asarray(ts, jnp.result_type(float))
    _check_times(ts)
    y0s = jtu.tree_map(lambda y: _as_solved(y, ts), y0s)
    count = _count(y0s)
    make_terms = as_terms_of_key(terms)
    place, term = find_multilevel_term(make_terms(key))
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
    """With the dtype that `diffeqsolve` gives to a state."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.asarray(y, jnp.result_type(y, ts))


def _count(y0s: PyTree[Array]) -> int:
    shapes = [leaf.shape for leaf in jtu.tree_leaves(y0s)]
    counts = {shape[:1] for shape in shapes}
    if len(counts) != 1 or counts == {()} or counts == {(0,)}:
        raise ValueError(
            f"calibrate was given y0s with arrays of shapes {shapes}; all need the same leading axis, one entry for "
            "each pilot. For a single pilot write y0[None]."
        )
    return shapes[0][0]


def check_labels(labels: PyTree, args: Args, pilots: int) -> None:
    if labels is not None and args is not None:
        raise ValueError("Give args, the same for all pilots, or labels, one for each; not both.")
    for leaf in jtu.tree_leaves(labels):
        if jnp.shape(leaf)[:1] != (pilots,):
            raise ValueError(
                f"labels has an array of shape {jnp.shape(leaf)} for {pilots} pilots; one entry per pilot is "
                f"expected, shape ({pilots}, ...). For the same for all write args=..."
            )


def _check_times(ts: jax.Array) -> None:
    steps = np.diff(np.asarray(ts))
    if ts.ndim != 1 or len(steps) < 4 or len(steps) % 4 or not (np.all(steps > 0) or np.all(steps < 0)):
        raise ValueError(
            f"calibrate was given times of shape {ts.shape}; an increasing or decreasing sequence is "
            "expected whose number of steps is a multiple of 4, for example jnp.linspace(t0, t1, 129)."
        )


def check_finite(effects: np.ndarray, ts: Array) -> None:
    bad = ~np.all(np.isfinite(effects), axis=(1, 3))
    if np.any(bad):
        steps = len(ts) - 1
        raise ValueError(
            f"{int(np.sum(np.any(bad, axis=0)))} of {effects.shape[2]} pilot trajectories of Euler on the finest level "
            f"with {steps} steps, or the derivatives along them, are not finite. Calibrate with a finer ts, for "
            f"example {4 * steps} steps, or with sensitivity_level=0 if only the derivatives explode."
        )
