"""The layers that the UNet and the transformer share, on channels-last arrays, and how both are called.

Norms are RMS over the channel axis: on a CPU a fraction of the time of a norm that mixes axes.
"""

import math
from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

_NUM_FREQUENCIES = 8


class AbstractNetwork(eqx.Module):
    """What the levels of a ladder are: `(x, noise_level, label) -> array of x's shape`.

    - `shape`: `(height, width, channels)` of one image.
    - `classes`: how many labels there are, or `None` for a network that takes no label.
    """

    shape: eqx.AbstractVar[tuple[int, int, int]]
    classes: eqx.AbstractVar[int | None]

    @abstractmethod
    def __call__(
        self, x: Float[Array, "*n h w c"], noise_level: Float[Array, "*m"], label: ArrayLike | None = None
    ) -> Float[Array, "*n h w c"]:
        """One image `(h, w, c)` with a scalar `noise_level` and `label`, or a batch `(n, h, w, c)` with a scalar
        or `(n,)` of each. `noise_level` is the natural logarithm of `sigma / alpha`; `label` an integer, from
        0 to `classes - 1`, or `classes` itself for "no label".

        Raises `ValueError` for other shapes, a label that is missing, out of range or of no use. A label that is
        out of range inside compiled code, where nothing can be raised, makes the output NaN.
        """


def space_to_depth(x: Float[Array, "n h w c"], factor: int) -> Float[Array, "n h2 w2 c2"]:
    """Squares of `factor` x `factor` pixels as channels."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // factor, factor, w // factor, factor, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h // factor, w // factor, factor**2 * c)


def depth_to_space(x: Float[Array, "n h w c"], factor: int) -> Float[Array, "n h2 w2 c2"]:
    """The inverse of `space_to_depth`."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, factor, factor, c // factor**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h * factor, w * factor, c // factor**2)


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def rms_norm(x: Float[Array, "*places c"]) -> Float[Array, "*places c"]:
    """Each place's channels divided by their root mean square, which is computed in float32 at least."""
    wide = x.astype(_wide(x.dtype))
    return x * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6).astype(x.dtype)


class Conv(eqx.Module):
    """A `size` x `size` convolution, stride 1, zero padding, on `(n, h, w, channels)` arrays.

    With `unfold=True` as one matrix product over the gathered neighbourhoods: on a CPU a third faster
    where the image is small and the channels are few, slower elsewhere.
    """

    weight: Float[Array, "size size c_in c_out"]
    bias: Float[Array, " c_out"]
    unfold: bool = eqx.field(static=True)

    def __init__(
        self,
        c_in: int,
        c_out: int,
        size: int = 3,
        *,
        scale: float = 1.0,
        unfold: bool = False,
        key: PRNGKeyArray,
    ):
        fan_in = size * size * c_in
        self.weight = scale / math.sqrt(fan_in) * jr.normal(key, (size, size, c_in, c_out))
        self.bias = jnp.zeros(c_out)
        self.unfold = unfold

    def __call__(self, x: Float[Array, "n h w c_in"]) -> Float[Array, "n h w c_out"]:
        size = self.weight.shape[0]
        bias = self.bias[None, None, None, :]
        if size == 1:
            return x @ self.weight[0, 0] + bias
        if self.unfold:
            _, h, w, _ = x.shape
            below = size // 2
            padded = jnp.pad(x, ((0, 0), (below, below), (below, below), (0, 0)))
            shifts = [padded[:, i : i + h, j : j + w] for i in range(size) for j in range(size)]
            kernel = self.weight.reshape(-1, self.weight.shape[-1])
            return jnp.concatenate(shifts, axis=-1) @ kernel + bias
        out = jax.lax.conv_general_dilated(
            x, self.weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return out + bias


class Linear(eqx.Module):
    """A dense layer on the last axis."""

    weight: Float[Array, "c_in c_out"]
    bias: Float[Array, " c_out"]

    def __init__(self, c_in: int, c_out: int, *, scale: float = 1.0, key: PRNGKeyArray):
        self.weight = scale / math.sqrt(c_in) * jr.normal(key, (c_in, c_out))
        self.bias = jnp.zeros(c_out)

    def __call__(self, x: Float[Array, "*n c_in"]) -> Float[Array, "*n c_out"]:
        return x @ self.weight + jnp.expand_dims(self.bias, tuple(range(x.ndim - 1)))


class Attention(eqx.Module):
    """Self-attention of `heads` heads over the second axis (Vaswani et al. 2017, section 3.2); `scale` is that of
    the initial output."""

    query_key_value: Linear
    out: Linear
    heads: int = eqx.field(static=True)

    def __init__(self, channels: int, heads: int, *, scale: float = 1.0, key: PRNGKeyArray):
        key1, key2 = jr.split(key)
        self.query_key_value = Linear(channels, 3 * channels, key=key1)
        self.out = Linear(channels, channels, scale=scale, key=key2)
        self.heads = heads

    def __call__(self, x: Float[Array, "n places c"]) -> Float[Array, "n places c"]:
        n, places, channels = x.shape
        size = channels // self.heads
        projected = self.query_key_value(x).reshape(n, places, 3, self.heads, size)
        query, key, value = jnp.moveaxis(projected, 2, 0)
        # A sum of exponentials needs more digits than bfloat16 has.
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key).astype(_wide(x.dtype)) / math.sqrt(size)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores).astype(x.dtype), value)
        return self.out(mixed.reshape(x.shape))


class Embedding(eqx.Module):
    """Noise level and label as one vector: two dense layers on sines and cosines, and a table of `classes + 1`
    rows, the last of which stands for "no label"."""

    linear1: Linear
    linear2: Linear
    labels: Float[Array, "rows e"] | None

    def __init__(
        self, size: int, classes: int | None, *, keys: tuple[PRNGKeyArray, PRNGKeyArray, PRNGKeyArray]
    ):
        self.linear1 = Linear(2 * _NUM_FREQUENCIES, size, key=keys[0])
        self.linear2 = Linear(size, size, key=keys[1])
        # About as large as what it is added to.
        self.labels = None if classes is None else 0.3 * jr.normal(keys[2], (classes + 1, size))

    def __call__(
        self, noise_level: Float[Array, "*m"], label: ArrayLike | None, dtype: jnp.dtype
    ) -> Float[Array, "k e"]:
        # In bfloat16 the logarithms of neighbouring noise levels would be the same number.
        wide = _wide(dtype)
        frequencies = 2.0 ** jnp.linspace(-3.0, 2.0, _NUM_FREQUENCIES, dtype=wide)
        angles = jnp.reshape(noise_level, (-1, 1)).astype(wide) * frequencies[None, :]
        features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(dtype)
        hidden = self.linear2(jax.nn.silu(self.linear1(features)))
        if self.labels is not None:
            rows = self.labels.at[jnp.reshape(jnp.asarray(label), (-1,))]
            hidden = hidden + rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return jax.nn.silu(hidden)


def check_integers(name: str, least: int = 1, **values: object) -> None:
    """Raises `ValueError` unless all are integers of at least `least`."""
    for argument, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
            raise ValueError(f"{name} was given {argument}={value!r}; {kind} is expected.")


def check_call(network: AbstractNetwork, x: Array, noise_level: ArrayLike, label: ArrayLike | None) -> None:
    """Raises `ValueError` unless the arguments fit the network and each other, see `AbstractNetwork`."""
    name, classes = type(network).__name__, network.classes
    if x.shape[-3:] != network.shape:
        raise ValueError(
            f"This {name} was built for images of shape {network.shape} (height, width, channels) "
            f"and was given an array of shape {x.shape}."
        )
    expected = ((), (math.prod(x.shape[:-3]),)) if x.ndim > 3 else ((),)
    if jnp.shape(noise_level) not in expected:
        raise ValueError(
            f"This {name} was given images of shape {x.shape} with noise levels of shape "
            f"{jnp.shape(noise_level)}; one for all, shape (), or one per image of a batch is expected."
        )
    if classes is None:
        if label is not None:
            raise ValueError(
                f"This {name} was built without classes and was given a label. Leave the label (the args of the "
                f"solve) out, or build and train it with {name}(..., classes=...)."
            )
        return
    if label is None:
        raise ValueError(
            f"This {name} needs a label and was given none. Write network(x, noise_level, label), "
            "diffrax.diffeqsolve(..., args=labels) or sample(..., labels=labels), with integers from 0 to "
            f"{classes - 1}, or {classes} for no label."
        )
    given = jnp.asarray(label)
    if not jnp.issubdtype(given.dtype, jnp.integer) or given.shape not in expected:
        raise ValueError(
            f"This {name} was given images of shape {x.shape} with labels of shape {given.shape} and type "
            f"{given.dtype}; an integer for all, shape (), or one per image of a batch is expected."
        )
    if not isinstance(given, Tracer):
        check_label_range(name, np.asarray(given), classes)


def check_label_range(name: str, labels: np.ndarray, classes: int) -> None:
    """Raises `ValueError` unless all labels are from 0 to `classes`, which means "no label"."""
    if labels.size and (labels.min() < 0 or labels.max() > classes):
        raise ValueError(
            f"{name} with {classes} classes was given labels from {labels.min()} to {labels.max()}; 0 to "
            f"{classes - 1} are expected, or {classes} for no label."
        )
