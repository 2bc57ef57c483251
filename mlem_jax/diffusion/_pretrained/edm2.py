"""EDM2 (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models"):
magnitude-preserving UNets in pixels or latents, with their preconditioning.

Equations are those of the paper. Its weights are used only after they have been normalised (equation 47), so that
is done once, when a network is made, and what is kept are ordinary convolutions.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from .convolutional import average_pool, double
from .edm2_config import EDM2Config
from .network import AbstractPretrained
from .parameters import attend, RandomParameters, Scope, widened

# Magnitude of SiLU of a standard normal variable (equation 81), and what is added to norms so that none is 0.
_SILU, _EPSILON = 0.596, 1e-4
_SIZE_OF_HEADS = 64


def _unit(x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
    """The last axis with a root mean square of 1 (equation 30, "pixel norm"), in float32 at least."""
    wide = x.astype(widened(x.dtype))
    norm = jnp.linalg.norm(wide, axis=-1, keepdims=True)
    return (wide / (_EPSILON + norm / math.sqrt(x.shape[-1]))).astype(x.dtype)


def _weight(
    scope: Scope, c_in: int, c_out: int, size: int = 0, *, gain: Array | float = 1.0
) -> Float[Array, "..."]:
    """A normalised weight times a gain, `(c_in, c_out)` or with `size` `(size, size, c_in, c_out)`."""
    kernel = (size, size) if size else ()
    axes = (2, 3, 1, 0) if size else (1, 0)
    raw = scope("weight", (c_out, c_in, *kernel), deviation=1.0, axes=axes, wide=True)
    flat = _unit(raw.reshape(-1, c_out).T).T.reshape(raw.shape)
    return (flat * (gain / math.sqrt(flat[..., 0].size))).astype(scope.dtype)


def _convolve(x: Float[Array, "n h w c"], weight: Float[Array, "size size c c2"]) -> Float[Array, "n h w c2"]:
    if weight.shape[0] == 1:
        return x @ weight[0, 0]
    return jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _silu(x: Array) -> Array:
    return jax.nn.silu(x) / _SILU


def _sum(a: Array, b: Array, balance: float | int) -> Array:
    """Equation 88."""
    return (a + balance * (b - a)) / math.sqrt((1 - balance) ** 2 + balance**2)


def _join(a: Float[Array, "n h w c"], b: Float[Array, "n h w c2"], balance: float | int) -> Array:
    """Equation 103."""
    first, second = a.shape[-1], b.shape[-1]
    scale = math.sqrt((first + second) / ((1 - balance) ** 2 + balance**2))
    parts = (a * (scale * (1 - balance) / math.sqrt(first)), b * (scale * balance / math.sqrt(second)))
    return jnp.concatenate(parts, axis=-1)


class _Fourier(eqx.Module):
    """Cosines of a number (equation 75). Not rounded: the frequencies multiply a logarithm."""

    frequencies: Float[Array, " f"]
    phases: Float[Array, " f"]

    def __init__(self, scope: Scope, features: int):
        self.frequencies = scope("freqs", (features,), deviation=2 * math.pi, wide=True)
        self.phases = scope("phases", (features,), deviation=math.pi, wide=True)

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, "n f"]:
        return jnp.cos(x[:, None] * self.frequencies[None] + self.phases[None]) * math.sqrt(2)


class _Block(eqx.Module):
    """A block of encoder or decoder (figure 21)."""

    embedding: Float[Array, "e c"]
    first: Float[Array, "3 3 c_in c"]
    second: Float[Array, "3 3 c c"]
    skip: Float[Array, "1 1 c_in c"] | None
    query_key_value: Float[Array, "1 1 c c3"] | None
    project: Float[Array, "1 1 c c"] | None
    config: EDM2Config = eqx.field(static=True)
    decoder: bool = eqx.field(static=True)
    resize: str = eqx.field(static=True)

    def __init__(
        self,
        config: EDM2Config,
        scope: Scope,
        c_in: int,
        c_out: int,
        *,
        decoder: bool,
        attention: bool = False,
        resize: str = "keep",
    ):
        size = config.width * max(config.multipliers)
        gain = scope("emb_gain", (), mean=1.0, wide=True)
        self.embedding = _weight(scope / "emb_linear", size, c_out, gain=gain)
        self.first = _weight(scope / "conv_res0", c_in if decoder else c_out, c_out, 3)
        self.second = _weight(scope / "conv_res1", c_out, c_out, 3)
        self.skip = None if c_in == c_out else _weight(scope / "conv_skip", c_in, c_out, 1)
        self.query_key_value = self.project = None
        if attention:
            self.query_key_value = _weight(scope / "attn_qkv", c_out, 3 * c_out, 1)
            self.project = _weight(scope / "attn_proj", c_out, c_out, 1)
        self.config, self.decoder, self.resize = config, decoder, resize

    def __call__(self, x: Float[Array, "n h w c_in"], embedding: Float[Array, "n e"]) -> Array:
        config = self.config
        if self.resize != "keep":
            x = average_pool(x) if self.resize == "down" else double(x)
        if not self.decoder:
            x = _unit(x if self.skip is None else _convolve(x, self.skip))
        hidden = _convolve(_silu(x), self.first)
        scale = embedding @ self.embedding + 1
        hidden = _convolve(_silu(hidden * scale[:, None, None, :]), self.second)
        if self.decoder and self.skip is not None:
            x = _convolve(x, self.skip)
        x = _sum(x, hidden, config.residual_balance)
        if self.query_key_value is not None:
            x = _sum(x, self._attention(x), config.attention_balance)
        return jnp.clip(x, -config.clip, config.clip)

    def _attention(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        assert self.query_key_value is not None and self.project is not None
        n, h, w, channels = x.shape
        projected = _convolve(x, self.query_key_value)
        # The authors' order of channels: heads, then those of a head, then query, key and value.
        parts = projected.reshape(n, h * w, channels // _SIZE_OF_HEADS, _SIZE_OF_HEADS, 3)
        query, key, value = (_unit(parts[..., i]) for i in range(3))
        return _convolve(attend(query, key, value).reshape(x.shape), self.project)


class EDM2(AbstractPretrained):
    """An EDM2 network with its preconditioning on channels-last arrays, `(x, sigma, label=None) -> clean image`.

    `x` is an image with noise of standard deviation `sigma` on it. Label number `classes` stands for "no label"; the
    published networks were not trained with it, and are guided by another one (Karras et al. 2024, "Guiding a
    Diffusion Model with a Bad Version of Itself").

    Build it with [`mlem_jax.diffusion.load_network`][], or with random weights by `EDM2.init(config, key=key)`.
    """

    fourier: _Fourier
    noise: Float[Array, "f e"]
    label: Float[Array, "classes e"] | None
    stem: Float[Array, "3 3 c_in c"]
    encoder: list[_Block]
    decoder: list[_Block]
    head: Float[Array, "3 3 c c_out"]
    config: EDM2Config = eqx.field(static=True)
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(self, config: EDM2Config, scope: Scope):
        self.config, self.dtype = config, scope.dtype
        scope = scope / "unet"
        widths = [config.width * factor for factor in config.multipliers]
        size = max(widths)
        self.fourier = _Fourier(scope / "emb_fourier", widths[0])
        self.noise = _weight(scope / "emb_noise", widths[0], size)
        self.label = None
        if config.classes:
            self.label = _weight(scope / "emb_label", config.classes, size)
        # One channel of ones stands for the bias.
        self.stem = _weight(
            scope / "enc" / f"{config.size}x{config.size}_conv", config.channels + 1, widths[0], 3
        )
        self.encoder, skips = _encoder(config, scope / "enc", widths)
        self.decoder = _decoder(config, scope / "dec", widths, skips)
        gain = scope("out_gain", (), mean=1.0, wide=True)
        self.head = _weight(scope / "out_conv", widths[0], config.channels, 3, gain=gain)

    @classmethod
    def init(cls, config: EDM2Config, *, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32) -> "EDM2":
        """A network with random weights."""
        return cls(config, Scope(RandomParameters(key), dtype))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.config.size, self.config.size, self.config.channels

    @property
    def classes(self) -> int | None:
        return self.config.classes or None

    @property
    def null(self) -> int | None:
        return self.classes

    def evaluate(
        self, x: Float[Array, "n h w c"], conditioning: Float[Array, " n"], label: Array | None
    ) -> Float[Array, "n h w c"]:
        sigma = conditioning[:, None, None, None]
        data = self.config.sigma_data
        # The preconditioning of Karras et al. 2022 (table 1), in float32 whatever the network computes in.
        wide = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(sigma**2 + data**2)
        out = self._network((scale * wide).astype(self.dtype), jnp.log(conditioning) / 4, label)
        return (data * scale) ** 2 * wide + sigma * data * scale * out.astype(jnp.float32)

    def _network(
        self, x: Float[Array, "n h w c"], noise: Float[Array, " n"], label: Array | None
    ) -> Float[Array, "n h w c"]:
        """The network inside, on an input of unit variance."""
        embedding = self._embedding(noise, label)
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        x = _convolve(x, self.stem)
        skips = [x]
        for block in self.encoder:
            x = block(x, embedding)
            skips.append(x)
        for block in self.decoder:
            # Blocks that neither begin the decoder nor double the size take up a skip.
            if block.first.shape[2] > x.shape[-1]:
                x = _join(x, skips.pop(), self.config.skip_balance)
            x = block(x, embedding)
        return _convolve(x, self.head)

    def _embedding(self, noise: Float[Array, " n"], label: Array | None) -> Float[Array, "n e"]:
        embedding = self.fourier(noise).astype(self.dtype) @ self.noise
        if self.label is not None:
            # A row for each label, none for "no label", at the magnitude of a one-hot vector times sqrt(classes).
            rows = self.label.at[label].get(mode="fill", fill_value=0, wrap_negative_indices=False)
            rows = rows * math.sqrt(self.config.classes)
            embedding = _sum(embedding, rows, self.config.label_balance)
        return _silu(embedding)


def _encoder(config: EDM2Config, scope: Scope, widths: list[int]) -> tuple[list[_Block], list[int]]:
    """The blocks, and the channels of every skip."""
    blocks, skips = [], [widths[0]]
    for level, width in enumerate(widths):
        side = config.size >> level
        name = f"{side}x{side}"
        if level:
            last = skips[-1]
            blocks.append(_Block(config, scope / f"{name}_down", last, last, decoder=False, resize="down"))
            skips.append(last)
        for i in range(config.depth):
            attention = side in config.attention_sizes
            inner = scope / f"{name}_block{i}"
            blocks.append(_Block(config, inner, skips[-1], width, decoder=False, attention=attention))
            skips.append(width)
    return blocks, skips


def _decoder(config: EDM2Config, scope: Scope, widths: list[int], skips: list[int]) -> list[_Block]:
    blocks, c_in = [], widths[-1]
    skips = list(skips)
    for level, width in reversed(list(enumerate(widths))):
        side = config.size >> level
        name = f"{side}x{side}"
        if level == len(widths) - 1:
            blocks.append(_Block(config, scope / f"{name}_in0", c_in, c_in, decoder=True, attention=True))
            blocks.append(_Block(config, scope / f"{name}_in1", c_in, c_in, decoder=True))
        else:
            blocks.append(_Block(config, scope / f"{name}_up", c_in, c_in, decoder=True, resize="up"))
        for i in range(config.depth + 1):
            attention = side in config.attention_sizes
            inner = scope / f"{name}_block{i}"
            blocks.append(_Block(config, inner, c_in + skips.pop(), width, decoder=True, attention=attention))
            c_in = width
    return blocks
