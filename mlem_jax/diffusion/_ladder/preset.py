"""Ladders by FLOPs: UNets of given cost for a given image shape."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import equinox as eqx
import jax.random as jr

from .config import Config
from .ladder import count_flops
from .level import Level
from .training import Training

# The shipped levels, 28 x 28, are of these kinds. Distilled from the finest one for 1,200 steps, a level of 5.6 MFLOP
# was at a mean squared distance of 0.142 with dense layers at the end and of 0.151 with convolutions alone; for 3,600
# steps, one of 1 MFLOP at 0.118 with dense layers between two convolutions, and at 0.126 as dense layers alone.
_FINEST_FOLDS = (2, 4, 8)
# Pixels per side at which halving stops.
_SMALLEST_GRID = 8
# Channels of the dense layers, in units of the width; more where there are no other blocks.
_DENSE, _DENSE_ALONE = 4, 8
# Narrower convolutions take much longer than their FLOPs suggest (measured on CPUs).
_NARROWEST, _NARROWEST_ALONE = 24, 16


def ladder_of_flops(
    shape: tuple[int, int, int],
    mflops: Sequence[float | int],
    *,
    name: str = "ladder",
    training: Training = Training(),  # noqa: B008 (immutable)
) -> Config:
    """A ladder of UNets of about `mflops` million FLOPs per image each, cheapest first.

    A level works on the finest grid on which the FLOPs allow 24 channels, halves it until it is no more than 8 pixels
    wide, three grids at most, and doubles the channels after the first. A grid that is no wider is then folded into a
    single place, or as few as its sides allow, for dense layers with four times the channels of the first grid, which
    see the whole image. Where no grid has 24 channels, the only blocks are such dense layers, with eight times
    the channels of a single grid; and where that has fewer than 16, they work on the image itself. The width is the
    one that comes nearest. Where that is too narrow to represent an image, the level has an
    [`mlem_jax.diffusion.InputSkip`][].

    Raises `ValueError` for targets that are not positive and increasing, or too small or too large for a level.
    """
    targets = [float(x) for x in mflops]
    increasing = all(a < b for a, b in zip(targets, targets[1:], strict=False))
    if not targets or not all(0 < x < math.inf for x in targets) or not increasing:
        raise ValueError(
            f"mflops={targets}; increasing positive numbers are expected, such as 2,15,90: million FLOPs per image of "
            "each level, cheapest first."
        )
    levels = tuple(_level(shape, 1e6 * target) for target in targets)
    return Config(name=name, shape=shape, levels=levels, training=training)


def _level(shape: tuple[int, int, int], target: float) -> Level:
    folds = [n for n in _FINEST_FOLDS if not (shape[0] % n or shape[1] % n)]
    if not folds:
        raise ValueError(
            f"Images of {shape[0]} x {shape[1]} cannot be folded in two. Choose a shape whose sides are multiples "
            "of 2, better of 8."
        )
    templates = _templates(shape, folds)
    levels = []
    for template, narrowest in templates:
        levels.append(dataclasses.replace(template, width=_width(shape, template, target)))
        if levels[-1].width >= narrowest:
            return levels[-1]
    chosen = max(levels, key=lambda level: level.width)
    if chosen.width < 1:
        least = min(_flops(shape, template) for template, _ in templates)
        raise ValueError(
            f"A level of {target / 1e6:g} million FLOPs is too small for images of {shape[0]} x {shape[1]}; at least "
            f"{least / 1e6:.2g} are expected."
        )
    return chosen


def _templates(shape: tuple[int, int, int], folds: Sequence[int]) -> list[tuple[Level, int]]:
    """Levels of width 1, best first, and the width from which each is used."""
    full = [_template(shape, fold) for fold in folds]
    dense = [
        dataclasses.replace(template, multipliers=(1, _DENSE_ALONE), blocks=(0, 1))
        for template in full
        if template.multipliers == (1, _DENSE)
    ]
    whole = Level(1, (math.gcd(*shape[:2]),), (1,), (1,))
    return [
        *((t, _NARROWEST) for t in full),
        *((t, _NARROWEST_ALONE) for t in dense),
        (whole, _NARROWEST_ALONE),
    ]


def _template(shape: tuple[int, int, int], fold: int) -> Level:
    """The level of width 1 whose finest grid is the image's by `fold`."""
    folds, multipliers, blocks = [fold], [1], [1]
    sides = [side // fold for side in shape[:2]]
    while len(folds) < 3 and max(sides) > _SMALLEST_GRID and not any(side % 2 for side in sides):
        folds.append(2)
        multipliers.append(2)
        blocks.append(2)
        sides = [side // 2 for side in sides]
    rest = math.gcd(*sides)
    if max(sides) <= _SMALLEST_GRID and rest > 1:
        folds.append(rest)
        multipliers.append(_DENSE)
        blocks.append(1)
    return Level(1, tuple(folds), tuple(multipliers), tuple(blocks))


def _width(shape: tuple[int, int, int], template: Level, target: float) -> int:
    """The width whose FLOPs come nearest to `target`; 0 if even one channel takes more."""
    if _flops(shape, template) > target:
        return 0
    width = 32
    # FLOPs grow with a power of the width between the first and the second, so that each of these steps at least
    # halves the distance.
    for _ in range(8):
        ratio = target / _flops(shape, dataclasses.replace(template, width=width))
        before, width = width, max(1, round(width * math.sqrt(ratio)))
        if width == before:
            break
    return width


@functools.cache
def _flops(shape: tuple[int, int, int], level: Level) -> float:
    # Shapes only: the networks tried are never drawn.
    return count_flops(eqx.filter_eval_shape(lambda: level.network(shape, None, key=jr.key(0))))
