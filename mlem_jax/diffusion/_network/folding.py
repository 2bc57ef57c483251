"""Squares of pixels as channels, and back."""

from jaxtyping import Array, Float


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
