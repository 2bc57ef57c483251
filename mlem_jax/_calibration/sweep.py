"""The backward sweep along pilot trajectories, which measures the effects of the increments on the end state."""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree

from .._custom_types import Args, Y
from .._term import find_multilevel_term, MakeTerms
from .pilots import PilotInputs, solve_on_grid


@eqx.filter_jit
def sweep(
    make_terms: MakeTerms,
    make_cheap: MakeTerms,
    ts: Float[Array, " times"],
    y0s: Y,
    args: Args,
    probes: int,
    inputs: PilotInputs,
    probe_keys: Key[Array, " pilots"],
) -> tuple[Float[Array, "steps levels pilots"], Float[Array, "steps levels pilots probes"]]:
    """Mean squares of `D_k`, and `J D_k` in random directions, at the start of every step of Euler on the finest level.
    `J` is the derivative of the flow of `make_cheap`'s terms. Mean squares over directions are mean squares over the
    state's components, where a complex component counts once with its absolute square."""
    components = sum(leaf[0].size for leaf in jtu.tree_leaves(y0s))

    def one_path(y0: Y, inputs: PilotInputs, key: PRNGKeyArray) -> tuple[Array, Array]:
        terms, cheap_terms = make_terms(inputs.noise), make_cheap(inputs.noise)
        given = inputs.args(args)
        _, term = find_multilevel_term(terms)
        saveat = diffrax.SaveAt(t0=True, steps=True)
        path = solve_on_grid(diffrax.Euler(), terms, ts, y0, given, saveat).ys

        def back(adjoints: Y, step: Array) -> tuple[Y, tuple[Array, Array]]:
            y = jtu.tree_map(lambda leaf: leaf[step], path)
            increments = _increments(term.levels, ts[step], y, given)
            squares = jnp.stack([_pair(jtu.tree_map(jnp.conj, d), d) for d in increments]) / components
            effects = jnp.stack([jax.vmap(lambda a, d=d: _pair(a, d))(adjoints) for d in increments])

            def advance(y: Y) -> Y:
                return jtu.tree_map(jnp.add, y, _step(cheap_terms, ts[step], ts[step + 1], y, given))

            _, pull = jax.vjp(advance, y)
            (adjoints,) = jax.vmap(pull)(adjoints)
            return adjoints, (squares, effects / components**0.5)

        steps = jnp.arange(ts.shape[0] - 1)
        _, out = jax.lax.scan(back, _directions(y0, probes, key), steps, reverse=True)
        return out

    squares, effects = jax.vmap(one_path)(y0s, inputs, probe_keys)
    return jnp.moveaxis(squares, 0, 2), jnp.moveaxis(effects, 0, 2)


def _directions(y0: Y, probes: int, key: PRNGKeyArray) -> PyTree:
    """Random signs with the shape of the state and a leading axis, for both parts of complex components."""
    leaves, structure = jtu.tree_flatten(y0)

    def draw(key: PRNGKeyArray, leaf: Array) -> Array:
        shape = (probes, *leaf.shape)
        if not jnp.iscomplexobj(leaf):
            return jr.rademacher(key, shape, leaf.dtype)
        real, imaginary = (jr.rademacher(k, shape, leaf.real.dtype) for k in jr.split(key))
        return jax.lax.complex(real, imaginary)

    drawn = [draw(jr.fold_in(key, i), leaf) for i, leaf in enumerate(leaves)]
    return jtu.tree_unflatten(structure, drawn)


def _increments(levels: tuple[Callable, ...], t: Array, y: Y, args: Args) -> list[Y]:
    drifts = [jtu.tree_map(lambda f, yi: f.astype(yi.dtype), level(t, y, args), y) for level in levels]
    pairs = zip(drifts[1:], drifts, strict=False)
    return [drifts[0]] + [jtu.tree_map(jnp.subtract, fine, coarse) for fine, coarse in pairs]


def _pair(a: Y, b: Y) -> Array:
    """The real part of the sum of products, which pairs cotangents and tangents in JAX, also of complex states."""
    products = jtu.tree_map(lambda u, v: jnp.sum((u * v).real), a, b)
    return jnp.sum(jnp.stack(jtu.tree_leaves(products)))


def _step(terms: PyTree, t0: Array, t1: Array, y: Y, args: Args) -> Y:
    """The increment of an Euler step from `t0` to `t1`, forward or backward in time. As in diffrax, controls are only
    evaluated on intervals in forward time."""
    backward = t1 < t0
    control = terms.contr(jnp.minimum(t0, t1), jnp.maximum(t0, t1))
    control = jtu.tree_map(lambda c: jnp.where(backward, -c, c), control)
    return terms.vf_prod(t0, y, args, control)
