"""Where the constructors of pretrained networks get their arrays from: a checkpoint, or a random key.

A constructor asks for each array by the name and shape that the checkpoints of its family use (PyTorch's layout) and
puts it into the layout of this library. So one piece of code says what a network is made of, whether its weights are
loaded, drawn, or only counted under `eqx.filter_eval_shape`.
"""

import abc
import math
import zlib
from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from .files import Checkpoint

Network = TypeVar("Network", bound=eqx.Module)


class AbstractParameters(abc.ABC):
    """Arrays by name."""

    @abc.abstractmethod
    def take(self, name: str, shape: tuple[int, ...], mean: float, deviation: float) -> Array | np.ndarray:
        """The array of this name, which must have this shape. `mean` and `deviation` say how to draw it at
        initialisation."""

    @abc.abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is an array of this name, for layers that some checkpoints have and others do not."""


class RandomParameters(AbstractParameters):
    """Normal arrays, each drawn with a key that depends on its name only."""

    def __init__(self, key: PRNGKeyArray):
        self._key = key

    def take(self, name: str, shape: tuple[int, ...], mean: float, deviation: float) -> Array:
        if deviation == 0:
            return jnp.full(shape, mean, jnp.float32)
        key = jr.fold_in(self._key, zlib.crc32(name.encode()))
        return mean + deviation * jr.normal(key, shape, jnp.float32)

    def has(self, name: str) -> bool:
        del name
        return False


class _Names(AbstractParameters):
    """Writes down what is asked for."""

    def __init__(self, present: Callable[[str], bool]):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._present = present

    def take(self, name: str, shape: tuple[int, ...], mean: float, deviation: float) -> Array:
        del mean, deviation
        self.shapes[name] = shape
        return jnp.zeros(shape, jnp.float32)

    def has(self, name: str) -> bool:
        return self._present(name)


class _Stored(AbstractParameters):
    """Those of a checkpoint that has been found to fit."""

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint
        self._there = set(checkpoint.shapes)

    def take(self, name: str, shape: tuple[int, ...], mean: float, deviation: float) -> np.ndarray:
        del shape, mean, deviation
        return self._checkpoint.read(name)

    def has(self, name: str) -> bool:
        return name in self._there


def required_shapes(
    build: Callable[["Scope"], Network], present: Callable[[str], bool] = lambda name: False
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays that a network is made of, without making it. `present` answers for those that
    not every checkpoint has."""
    names = _Names(present)
    eqx.filter_eval_shape(lambda: build(Scope(names, jnp.float32)))
    return names.shapes


def load_parameters(
    build: Callable[["Scope"], Network], checkpoint: Checkpoint, network: str, dtype: DTypeLike
) -> Network:
    """The network with a checkpoint's arrays. Raises `ValueError`, before any is read, unless they are those that
    it needs."""
    there = set(checkpoint.shapes)
    checkpoint.check(required_shapes(build, there.__contains__), network)
    return build(Scope(_Stored(checkpoint), dtype))


class Scope:
    """A place in the tree of names, `scope / "conv_in"`, from which layers take their arrays.

    `dtype` is that in which the network computes. Arrays that must not be rounded are asked for with `wide=True`.
    """

    def __init__(self, parameters: AbstractParameters, dtype: DTypeLike, prefix: str = ""):
        self.parameters = parameters
        self.dtype = jnp.dtype(dtype)
        self.prefix = prefix

    def __truediv__(self, name: str | int) -> "Scope":
        return Scope(self.parameters, self.dtype, f"{self.prefix}{name}.")

    def has(self, name: str) -> bool:
        return self.parameters.has(self.prefix + name)

    def __call__(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        mean: float = 0.0,
        deviation: float = 0.0,
        wide: bool = False,
        axes: tuple[int, ...] | None = None,
    ) -> Array:
        """The array of this name and shape (PyTorch's layout), with its axes permuted to `axes`."""
        array = self.parameters.take(self.prefix + name, shape, mean, deviation)
        if axes is not None:
            array = array.transpose(axes)
        return jnp.asarray(array, jnp.float32 if wide else self.dtype)


class Dense(eqx.Module):
    """`torch.nn.Linear` on the last axis."""

    weight: Float[Array, "c_in c_out"]
    bias: Float[Array, " c_out"] | None

    def __init__(self, scope: Scope, c_in: int, c_out: int, *, bias: bool = True, gain: float = 1.0):
        deviation = gain / math.sqrt(c_in)
        self.weight = scope("weight", (c_out, c_in), deviation=deviation, axes=(1, 0))
        self.bias = scope("bias", (c_out,)) if bias else None

    def __call__(self, x: Float[Array, "*n c_in"]) -> Float[Array, "*n c_out"]:
        out = x @ self.weight
        return out if self.bias is None else out + jnp.expand_dims(self.bias, tuple(range(x.ndim - 1)))


class Convolution(eqx.Module):
    """`torch.nn.Conv2d` on `(n, h, w, channels)` arrays; `padding` is `(before, after)` on both axes."""

    weight: Float[Array, "size size c_in c_out"]
    bias: Float[Array, " c_out"] | None
    stride: int = eqx.field(static=True)
    padding: tuple[int, int] = eqx.field(static=True)

    def __init__(
        self,
        scope: Scope,
        c_in: int,
        c_out: int,
        size: int = 3,
        *,
        stride: int = 1,
        padding: tuple[int, int] | None = None,
        bias: bool = True,
    ):
        deviation = 1 / math.sqrt(size * size * c_in)
        shape = (c_out, c_in, size, size)
        self.weight = scope("weight", shape, deviation=deviation, axes=(2, 3, 1, 0))
        self.bias = scope("bias", (c_out,)) if bias else None
        self.stride = stride
        self.padding = (size // 2, size // 2) if padding is None else padding

    def __call__(self, x: Float[Array, "n h w c_in"]) -> Float[Array, "n h2 w2 c_out"]:
        if self.weight.shape[:2] == (1, 1):
            out = x @ self.weight[0, 0]
        else:
            out = jax.lax.conv_general_dilated(
                x,
                self.weight,
                (self.stride, self.stride),
                [self.padding, self.padding],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        return out if self.bias is None else out + self.bias[None, None, None, :]


class GroupNorm(eqx.Module):
    """`torch.nn.GroupNorm` on `(n, ..., channels)` arrays, with statistics in float32 at least.

    Means over places come first, those over the channels of a group second: on a CPU several times faster than a mean
    over both.
    """

    weight: Float[Array, " c"]
    bias: Float[Array, " c"]
    groups: int = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    def __init__(self, scope: Scope, channels: int, groups: int, epsilon: float):
        if channels % groups:
            raise ValueError(
                f"The configuration asks for {groups} groups in a norm over {channels} channels, which is not a "
                "multiple."
            )
        self.weight = scope("weight", (channels,), mean=1.0)
        self.bias = scope("bias", (channels,))
        self.groups = groups
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "n *places c"]) -> Float[Array, "n *places c"]:
        n, channels = x.shape[0], x.shape[-1]
        wide = x.reshape(n, -1, channels).astype(widened(x.dtype))

        def group_mean(values: Float[Array, "n places c"]) -> Float[Array, "n 1 c"]:
            means = jnp.mean(values, axis=1).reshape(n, self.groups, -1)
            means = jnp.mean(means, axis=2, keepdims=True)
            return jnp.broadcast_to(means, (n, self.groups, channels // self.groups)).reshape(n, 1, channels)

        centred = wide - group_mean(wide)
        scale = jax.lax.rsqrt(group_mean(centred * centred) + self.epsilon)
        scale = scale * self.weight.astype(wide.dtype)[None, None, :]
        out = centred * scale + self.bias.astype(wide.dtype)[None, None, :]
        return out.astype(x.dtype).reshape(x.shape)


def widened(dtype: jnp.dtype) -> jnp.dtype:
    """The type in which sums over many numbers are taken: float32 at least."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def layer_norm(x: Float[Array, "*n c"], epsilon: float) -> Float[Array, "*n c"]:
    """Each place's channels, centred and divided by their standard deviation, in float32 at least."""
    wide = x.astype(widened(x.dtype))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def attend(
    query: Float[Array, "n q heads size"],
    key: Float[Array, "n k heads size"],
    value: Float[Array, "n k heads size"],
) -> Float[Array, "n q c"]:
    """Attention with the scale of Vaswani et al. 2017; the heads' outputs side by side."""
    n, places, heads, size = query.shape
    # A sum of exponentials needs more digits than bfloat16 has.
    wide = widened(query.dtype)
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key).astype(wide) / math.sqrt(size)
    mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores).astype(value.dtype), value)
    return mixed.reshape(n, places, heads * size)


def sinusoids(
    position: Float[Array, " m"], size: int, *, shift: float, cosine_first: bool
) -> Float[Array, "m size"]:
    """Sines and cosines of a number at `size / 2` frequencies that fall geometrically from 1 to 1 / 10000 (Vaswani
    et al. 2017, section 3.5); with `shift=1` the last frequency is exactly that, with 0 one ratio above it. In
    float32."""
    half = size // 2
    # In numpy, in double precision: XLA's float32 exponential is off by some units in the last place, which a
    # position of 1000 magnifies.
    frequencies = np.exp(-math.log(10_000) * np.arange(half) / (half - shift)).astype(np.float32)
    angles = position[:, None] * frequencies[None, :]
    parts = (jnp.cos(angles), jnp.sin(angles)) if cosine_first else (jnp.sin(angles), jnp.cos(angles))
    out = jnp.concatenate(parts, axis=-1)
    return out if size % 2 == 0 else jnp.pad(out, ((0, 0), (0, 1)))
