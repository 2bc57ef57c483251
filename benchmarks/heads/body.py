"""From the traits of a head to a surface: where its vertices are, which triangles are shown, and their colours.

Lengths are in decimetres, x to the head's left, y upwards, z to the front; `average` below is always the average
head, on which places are easy to name.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32

from heads.assets import Assets, BODY, EYES, HAIR, TEETH
from heads.raster import normals
from heads.traits import Hair, Paint, Shape, Traits

_CENTRE = np.array([0, 7.35, 0.35], np.float32)
_TEETH_COLOUR, _EYE_WHITE, _PUPIL = (0.9, 0.87, 0.82), 0.92, 0.02
_IRIS_RADIUS, _PUPIL_RADIUS = 0.085, 0.035


class Surface(NamedTuple):
    """Vertices, their normals and colours, which triangles are shown, and how much hair each vertex has."""

    vertices: Float32[np.ndarray, "n 3"]
    normals: Float32[np.ndarray, "n 3"]
    colours: Float[np.ndarray, "n 3"]
    shown: Bool[np.ndarray, " m"]
    scalp: Float[np.ndarray, " n"]


def build(assets: Assets, traits: Traits) -> Surface:
    """The surface of one head."""
    hair = traits.hair
    vertices = _shaped(assets, traits.shape)
    scalp = _scalp(assets, hair)
    around = np.empty_like(vertices)
    normals(vertices, assets.triangles, around)
    vertices += around * (scalp * _thickness(assets, hair))[:, None].astype(np.float32)
    if hair.long:
        hull = assets.part == HAIR
        waves = np.sin(5 * assets.vertices[hull][:, [1]] + hair.phases[0]) * 0.05 * hair.waves
        vertices[hull] += waves.astype(np.float32)
        vertices[hull, 0] *= hair.width
    normals(vertices, assets.triangles, around)
    colours = _colours(assets, traits, scalp)
    return Surface(vertices, around, colours, _shown(assets, hair), scalp)


def _shaped(assets: Assets, shape: Shape) -> Float32[np.ndarray, "n 3"]:
    """The average head moved along all directions."""
    sexes, ages = np.array([1 - shape.sex, shape.sex]), np.array([1 - shape.age, shape.age])
    macro = shape.race[:, None, None] * sexes[None, :, None] * ages[None, None]
    up, down = np.maximum(shape.features, 0), np.maximum(-shape.features, 0)
    parts = [macro.ravel().astype(np.float32), up, down, shape.expressions]
    moved = assets.vertices.ravel() + np.concatenate(parts).astype(np.float32) @ assets.directions
    return moved.reshape(-1, 3)


def _scalp(assets: Assets, hair: Hair) -> Float[np.ndarray, " n"]:
    """How much hair grows at each vertex, from 0 to 1."""
    if hair.bald:
        return np.zeros(len(assets.vertices))
    average, (x, y, z) = assets.vertices, (assets.vertices - _CENTRE).T
    # The angle upwards from the front.
    elevation = np.arctan2(y, np.maximum(z, -3))
    line = hair.line + 0.10 * np.sin(2.2 * x + hair.phases[2]) * hair.line_wave
    front = np.clip((elevation - line) / 0.08, 0, 1)
    side = (z < hair.side_depth) & (y > hair.side_height)
    covered = np.where(z > 0.1, np.maximum(front, side * 1.0), (y > -0.75).astype(np.float32))
    grows = (assets.part == BODY) * (assets.ears < 0.3) * (np.abs(x) < 1.3) * (average[:, 1] > 6.4)
    return covered * grows


def _thickness(assets: Assets, hair: Hair) -> Float[np.ndarray, " n"]:
    x, y, z = (assets.vertices - _CENTRE).T
    lumps = 0.5 + 0.25 * np.sin(3 * x + hair.phases[0]) + 0.25 * np.sin(4 * y + 2 * z + hair.phases[1])
    return hair.thickness * (0.5 + lumps)


def _shown(assets: Assets, hair: Hair) -> Bool[np.ndarray, " m"]:
    """All triangles but those of the hull of long hair; of these, if it is worn, what is above the cut and not before
    the face."""
    hull = assets.triangle_part == HAIR
    if not hair.long:
        return ~hull
    corners = assets.vertices[assets.triangles]
    middle = corners.mean(1)
    fringe = 8.02 + 0.12 * np.cos(2 * middle[:, 0] + hair.phases[0])
    before_face = (middle[:, 2] > 0.62) & (middle[:, 1] < fringe)
    return ~hull | ((corners[:, :, 1].min(1) > hair.cut) & ~before_face)


def _colours(assets: Assets, traits: Traits, scalp: np.ndarray) -> Float[np.ndarray, "n 3"]:
    """Skin, and over it, one after another, what is painted on it; then the other parts."""
    hair, paint = traits.hair, traits.paint
    average, body, phases = assets.vertices, assets.part == BODY, hair.phases
    x, y, z = average.T
    colours = np.tile(paint.skin, (len(average), 1)).astype(np.float32)
    colours *= 1 + 0.04 * np.sin(7 * average[:, [0]] + phases[0]) * np.sin(6 * average[:, [1]] + phases[1])
    cheeks = np.exp(-((((np.abs(x) - 0.45) / 0.22) ** 2) + ((y - 6.9) / 0.22) ** 2)) * (z > 0.9)
    colours *= 1 - cheeks[:, None] * np.array([0, 0.16, 0.14]) * paint.rouge
    colours = _over(colours, paint.lips, assets.lips)
    colours *= 1 - paint.lids * assets.lids[:, None]
    colours = _over(colours, hair.colour * 0.8, _brows(assets, paint))
    if paint.beard:
        colours = _over(colours, hair.colour, _beard(assets, paint))
    strands = 1 + 0.18 * np.sin(26 * average[:, [0]] + 9 * average[:, [2]] + phases[1])
    colours = _over(colours, hair.colour * strands, scalp)
    hull = average[assets.part == HAIR]
    strands = 1 + 0.22 * np.sin(18 * hull[:, [0]] + 14 * hull[:, [2]] + phases[2])
    colours[assets.part == HAIR] = hair.colour * strands
    for sign in (1, -1):
        eye = np.flatnonzero((assets.part == EYES) & (np.sign(x) == sign))
        colours[eye] = _eye(average[eye], paint)
    colours[assets.part == TEETH] = _TEETH_COLOUR
    colours[(y < paint.neckline - 0.25 * np.clip(z, 0, 1)) & body] = paint.clothes
    return colours


def _over(below: np.ndarray, colour: np.ndarray, share: np.ndarray) -> np.ndarray:
    return below * (1 - share[:, None]) + colour * share[:, None]


def _brows(assets: Assets, paint: Paint) -> Float[np.ndarray, " n"]:
    """A soft band above each eye."""
    away, y, z = np.abs(assets.vertices[:, 0]), assets.vertices[:, 1], assets.vertices[:, 2]
    arch = 7.52 + 0.09 * np.sin((away - 0.1) / 0.5 * 2.6) + paint.brow_height
    band = np.exp(-(((y - arch) / paint.brow_width) ** 2)) * (away > 0.1) * (away < 0.62) * (z > 0.9)
    return band * (assets.part == BODY) * paint.brow_strength


def _beard(assets: Assets, paint: Paint) -> Float[np.ndarray, " n"]:
    """A moustache, and perhaps a beard."""
    away, y, z = np.abs(assets.vertices[:, 0]), assets.vertices[:, 1], assets.vertices[:, 2]
    edge = 1 / (1 + np.exp((y - (6.62 + 0.25 * (away / 0.8) ** 2)) / 0.05))
    chin = edge * (z > 0.25) * (y > 6.0) * (1 - assets.lips) * (assets.part == BODY)
    moustache = np.exp(-(((y - 6.86) / 0.06) ** 2)) * (away < 0.33) * (z > 1.1) * (1 - assets.lips)
    return np.clip(chin * paint.full_beard + moustache, 0, 1) * paint.beard


def _eye(average: np.ndarray, paint: Paint) -> Float[np.ndarray, "n 3"]:
    """White, and on its front iris and pupil where the eye looks."""
    centre = average.mean(0)
    away = np.hypot(average[:, 0] - centre[0] - paint.gaze[0], average[:, 1] - centre[1] - paint.gaze[1])
    front = average[:, 2] > centre[2]
    found = np.full((len(average), 3), _EYE_WHITE)
    found[front & (away < _IRIS_RADIUS)] = paint.iris
    found[front & (away < _PUPIL_RADIUS)] = _PUPIL
    return found
