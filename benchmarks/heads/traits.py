"""All random numbers of one head, drawn in one place and in one order, so that they depend on its number alone."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_IRIS_COLOURS = np.array(
    [[0.25, 0.14, 0.07], [0.15, 0.09, 0.05], [0.25, 0.42, 0.62], [0.28, 0.42, 0.25], [0.35, 0.38, 0.42]]
)
_IRIS_SHARES = (0.40, 0.25, 0.17, 0.10, 0.08)
_HAIR_COLOURS = np.array(
    [
        [0.04, 0.03, 0.03],
        [0.12, 0.07, 0.04],
        [0.25, 0.14, 0.07],
        [0.42, 0.25, 0.12],
        [0.72, 0.55, 0.30],
        [0.45, 0.15, 0.06],
        [0.55, 0.53, 0.52],
    ],
    np.float32,
)
_HAIR_SHARES_YOUNG = (0.24, 0.24, 0.20, 0.12, 0.10, 0.05, 0.05)
_HAIR_SHARES_OLD = (0.14, 0.14, 0.12, 0.08, 0.08, 0.04, 0.40)
# Of the skin of each race, before it varies.
_MELANIN = (0.85, 0.30, 0.15)


class Shape(NamedTuple):
    """Shares of the races; sex from 0 (male) to 1; age from 0 (young) to 1; weights of features and expressions."""

    race: Float[np.ndarray, " 3"]
    sex: float
    age: float
    features: Float[np.ndarray, " features"]
    expressions: Float[np.ndarray, " expressions"]


class Hair(NamedTuple):
    """Colour; phases of all waves on the head; where the scalp's hair begins (angle and its wave in front, depth and
    height at the sides); its thickness; whether a hull of long hair is worn, down to which height, how wavy and how
    wide."""

    colour: Float[np.ndarray, " 3"]
    bald: bool
    phases: Float[np.ndarray, " 3"]
    line: float
    line_wave: float
    side_depth: float
    side_height: float
    thickness: float
    long: bool
    cut: float
    waves: float
    width: float


class Paint(NamedTuple):
    """Colours of skin, lips (red where painted), iris and clothes, the strength of rouge and eye shadow, height,
    width and strength of the eyebrows, the strength of beard and whether it is more than a moustache (0 for none),
    where the eyes look, where clothes begin."""

    skin: Float[np.ndarray, " 3"]
    rouge: float
    lips: Float[np.ndarray, " 3"]
    lids: float
    brow_height: float
    brow_width: float
    brow_strength: float
    beard: float
    full_beard: bool
    iris: Float[np.ndarray, " 3"]
    gaze: Float[np.ndarray, " 2"]
    clothes: Float[np.ndarray, " 3"]
    neckline: float


class Scene(NamedTuple):
    """Direction and colour of the light, ambient light, rotation of the head (yaw, pitch, roll), a picture's height in
    decimetres, shift, and for the background the decay of its noise's spectrum, that noise, its colour, how strong grey
    and coloured noise are in it, and its shading from top to bottom."""

    light: Float[np.ndarray, " 3"]
    light_colour: Float[np.ndarray, " 3"]
    ambient: float
    rotation: tuple[float, float, float]
    height: float
    shift: Float[np.ndarray, " 2"]
    decay: float
    noise: Float[np.ndarray, "4 side side"]
    background: Float[np.ndarray, " 3"]
    grey: float
    coloured: float
    shading: float


class Traits(NamedTuple):
    shape: Shape
    hair: Hair
    paint: Paint
    scene: Scene


def draw_traits(
    number: int,
    *,
    features: int,
    expressions: int,
    left: np.ndarray,
    right: np.ndarray,
    restrained: np.ndarray,
    side: int,
) -> Traits:
    """The traits of head number `number`; the other arguments are those of `Assets`, and the picture's side."""
    rng = np.random.default_rng(number)
    race, sex, age = rng.dirichlet([0.45] * 3), rng.beta(0.4, 0.4), rng.beta(0.7, 2.2)
    weights = np.clip(rng.normal(0, 0.24, features), -0.7, 0.7).astype(np.float32)
    # A face is nearly symmetric.
    weights[right] = weights[left] + 0.12 * weights[right]
    weights[restrained] *= 0.2
    # What is hardly there is left out.
    weights = np.where(np.abs(weights) < 0.05, 0, weights)
    strength = np.maximum(0, rng.normal(-0.35, 0.45, expressions))
    shape = Shape(race, sex, age, weights, strength * (rng.random(expressions) < 0.3))
    hair = _draw_hair(rng, sex, age)
    return Traits(shape, hair, _draw_paint(rng, race, sex), _draw_scene(rng, side))


def _draw_hair(rng: np.random.Generator, sex: float, age: float) -> Hair:
    shares = _HAIR_SHARES_YOUNG if age < 0.5 else _HAIR_SHARES_OLD
    colour = _HAIR_COLOURS[rng.choice(len(_HAIR_COLOURS), p=shares)] * rng.uniform(0.7, 1.3)
    bald = rng.random() < 0.10 * (1 - sex) + 0.02
    phases = rng.uniform(0, 6.28, 3)
    line, line_wave = rng.uniform(0.52, 0.80), rng.random()
    side_depth, side_height = 0.5 + 0.2 * rng.random(), -0.15 - 0.5 * rng.random()
    thickness = rng.gamma(2, 0.055)
    long = not bald and rng.random() < 0.15 + 0.65 * sex
    cut = rng.uniform(4.8, 6.9)
    waves, width = (rng.random(), rng.uniform(0.82, 1.1)) if long else (0.0, 1.0)
    return Hair(
        colour,
        bald,
        phases,
        line,
        line_wave,
        side_depth,
        side_height,
        thickness,
        long,
        cut,
        waves,
        width,
    )


def _draw_paint(rng: np.random.Generator, race: np.ndarray, sex: float) -> Paint:
    melanin = np.clip(race @ _MELANIN + rng.normal(0, 0.12), 0, 1)
    skin = np.array([0.96, 0.76, 0.65]) ** (1 - melanin) * np.array([0.33, 0.20, 0.13]) ** melanin
    skin = skin * rng.uniform(0.94, 1.05) * rng.uniform(0.975, 1.025, 3)
    rouge = rng.random()
    if rng.random() > 0.45 * sex:
        lips = skin * np.array([0.95, 0.62, 0.62]) * (1 - 0.15 * rng.random())
    else:
        lips = np.array([0.72, 0.14, 0.2]) * rng.uniform(0.6, 1.2)
    lids = 0.5 * rng.random() * sex
    brow_height, brow_width, brow_strength = (
        rng.normal(0, 0.02),
        rng.uniform(0.025, 0.045),
        rng.uniform(0.4, 0.9),
    )
    beard, full_beard = 0.0, False
    if sex < 0.5 and rng.random() < 0.5:
        beard, full_beard = rng.uniform(0.2, 0.95), rng.random() < 0.8
    iris = _IRIS_COLOURS[rng.choice(len(_IRIS_COLOURS), p=_IRIS_SHARES)]
    gaze = rng.normal(0, 0.035, 2)
    clothes = rng.random(3) * rng.uniform(0.3, 1)
    neckline = rng.uniform(5.2, 6.0)
    return Paint(
        skin,
        rouge,
        lips,
        lids,
        brow_height,
        brow_width,
        brow_strength,
        beard,
        full_beard,
        iris,
        gaze,
        clothes,
        neckline,
    )


def _draw_scene(rng: np.random.Generator, side: int) -> Scene:
    light = rng.normal(0, 1, 3)
    # From the front and from above.
    light[2] = abs(light[2]) + 0.6
    light[1] = abs(light[1]) * 0.8
    light /= np.linalg.norm(light)
    # From yellow to blue, and a little of any colour.
    light_colour = np.ones(3) + rng.normal(0, 0.04) * np.array([1, 0.2, -1]) + rng.normal(0, 0.015, 3)
    ambient = rng.uniform(0.25, 0.6)
    rotation = rng.normal(0, 0.35), rng.normal(0, 0.14), rng.normal(0, 0.09)
    height, shift = rng.uniform(2.75, 3.3), rng.normal(0, 0.05, 2)
    decay, noise = rng.uniform(1.5, 2.4), rng.standard_normal((4, side, side))
    background = rng.random() * 0.8 + 0.1 + rng.normal(0, 0.12, 3)
    grey, coloured, shading = rng.uniform(0.04, 0.16), rng.uniform(0, 0.05), rng.normal(0, 0.3)
    return Scene(
        light,
        light_colour,
        ambient,
        rotation,
        height,
        shift,
        decay,
        noise,
        background,
        grey,
        coloured,
        shading,
    )
