"""The kinds of level a ladder can have: the arguments of one network each."""

import dataclasses

from jaxtyping import PRNGKeyArray

from .._network import check_dit_sizes, check_sizes, DiT, needs_input_skip, UNet


@dataclasses.dataclass(frozen=True)
class Level:
    """The arguments of one [`mlem_jax.diffusion.UNet`][], `kind = "unet"` in a file, which is the default."""

    width: int
    folds: tuple[int, ...] = (2, 2)
    multipliers: tuple[int, ...] = (1, 2)
    blocks: tuple[int, ...] = (1, 2)
    attention: tuple[bool, ...] | None = None
    input_skip: bool | None = None

    def check(self, shape: tuple[int, ...], classes: int | None) -> None:
        """Raises `ValueError` unless there is such a network."""
        sizes = (self.width, self.folds, self.multipliers, self.blocks, self.attention)
        check_sizes(shape, *sizes, classes)

    def needs_input_skip(self, shape: tuple[int, int, int]) -> bool:
        """Whether the network is too narrow to represent an image of this shape by itself."""
        return needs_input_skip(self.width, shape[2], self.folds[0])

    def network(self, shape: tuple[int, int, int], classes: int | None, *, key: PRNGKeyArray) -> UNet:
        """The untrained network."""
        return UNet(
            shape,
            self.width,
            folds=self.folds,
            multipliers=self.multipliers,
            blocks=self.blocks,
            attention=self.attention,
            classes=classes,
            input_skip=self.input_skip,
            key=key,
        )


@dataclasses.dataclass(frozen=True)
class DiTLevel:
    """The arguments of one [`mlem_jax.diffusion.DiT`][], `kind = "dit"` in a file."""

    width: int
    patch: int = 4
    depth: int = 4
    heads: int = 4
    input_skip: bool | None = None

    def check(self, shape: tuple[int, ...], classes: int | None) -> None:
        """Raises `ValueError` unless there is such a network."""
        check_dit_sizes(shape, self.width, self.patch, self.depth, self.heads, classes)

    def needs_input_skip(self, shape: tuple[int, int, int]) -> bool:
        """Whether the network is too narrow to represent an image of this shape by itself."""
        return needs_input_skip(self.width, shape[2], self.patch)

    def network(self, shape: tuple[int, int, int], classes: int | None, *, key: PRNGKeyArray) -> DiT:
        """The untrained network."""
        return DiT(
            shape,
            self.width,
            patch=self.patch,
            depth=self.depth,
            heads=self.heads,
            classes=classes,
            input_skip=self.input_skip,
            key=key,
        )


# What `kind` in `[[levels]]` names.
KINDS: dict[str, type[Level] | type[DiTLevel]] = {"unet": Level, "dit": DiTLevel}
