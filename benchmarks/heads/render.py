"""One head as a picture: light, view, background, and pixels."""

import functools

import numpy as np
from jaxtyping import Float, Float32, UInt8

from heads.assets import Assets, EYES, load_assets
from heads.body import build, Surface
from heads.raster import rasterise
from heads.traits import draw_traits, Scene

SIDE = 64
# Pixels are averages of so many squared.
_FINE = 3
_CAMERA, _GAMMA = 14.0, 1.25

assets = functools.cache(load_assets)


def render(number: int) -> UInt8[np.ndarray, "64 64 3"]:
    """Head number `number`, the same on every call."""
    found = assets()
    traits = draw_traits(
        number,
        features=found.features,
        expressions=found.expressions,
        left=found.left,
        right=found.right,
        restrained=found.restrained,
        side=SIDE,
    )
    surface = build(found, traits)
    points, colours = _seen(found, surface, traits.scene)
    fine = _FINE * SIDE
    image = _background(traits.scene).repeat(_FINE, 0).repeat(_FINE, 1).astype(np.float32)
    depth = np.full((fine, fine), -1e9, np.float32)
    rasterise(points, found.triangles, surface.shown, colours, image, depth)
    image = image.reshape(SIDE, _FINE, SIDE, _FINE, 3).mean((1, 3))
    return (np.clip(image, 0, 1) ** (1 / _GAMMA) * 255 + 0.5).astype(np.uint8)


def _seen(
    assets: Assets, surface: Surface, scene: Scene
) -> tuple[Float32[np.ndarray, "n 3"], Float32[np.ndarray, "n 3"]]:
    """Column, row and nearness of each vertex, and its colour in the light."""
    turned = _rotation(*scene.rotation)
    eyes = surface.vertices[assets.part == EYES].mean(0)
    eyes[0] = 0
    # The head turns about a place behind the eyes.
    placed = (surface.vertices - [0, eyes[1] - 0.12, eyes[2] - 0.85]) @ turned.T
    lit = _lit(surface, surface.normals @ turned.T, scene)
    nearer = _CAMERA / (_CAMERA - placed[:, 2])
    fine = _FINE * SIDE
    zoom = fine / scene.height
    column = fine / 2 + (placed[:, 0] * nearer + scene.shift[0]) * zoom
    row = fine * 0.50 - (placed[:, 1] * nearer + scene.shift[1] + 0.05) * zoom
    return np.stack([column, row, placed[:, 2]], 1).astype(np.float32), lit


def _rotation(yaw: float, pitch: float, roll: float) -> Float[np.ndarray, "3 3"]:
    """First about y, then about x, then about z."""
    cos, sin = np.cos, np.sin
    about_z = np.array([[cos(roll), -sin(roll), 0], [sin(roll), cos(roll), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cos(pitch), -sin(pitch)], [0, sin(pitch), cos(pitch)]])
    about_y = np.array([[cos(yaw), 0, sin(yaw)], [0, 1, 0], [-sin(yaw), 0, cos(yaw)]])
    return about_z @ about_x @ about_y


def _lit(surface: Surface, normals: np.ndarray, scene: Scene) -> Float32[np.ndarray, "n 3"]:
    """A soft lamp, a brighter sky than ground, and a highlight, stronger on hair."""
    lamp = np.clip((normals @ scene.light + 0.25) / 1.25, 0, 1)
    sky = 0.75 + 0.25 * normals[:, 1]
    half = scene.light + [0, 0, 1]
    half /= np.linalg.norm(half)
    highlight = np.clip(normals @ half, 0, 1) ** 18 * 0.14 * (1 + surface.scalp * 0.3)
    light = (scene.ambient * sky)[:, None]
    light = light + (1.05 * lamp * (1 - scene.ambient * 0.45))[:, None] * scene.light_colour
    return (surface.colours * light + highlight[:, None]).astype(np.float32)


def _background(scene: Scene) -> Float[np.ndarray, "64 64 3"]:
    """A colour, clouded and shaded."""
    clouds = _clouds(scene.noise, scene.decay)
    shade = np.linspace(-0.5, 0.5, SIDE)[:, None, None] * scene.shading
    clouded = clouds[..., :1] * scene.grey + clouds[..., 1:] * scene.coloured
    return np.clip(scene.background + clouded + shade, 0, 1)


def _clouds(noise: np.ndarray, decay: float) -> Float32[np.ndarray, "64 64 4"]:
    """White noise whose spectrum is made to fall by a power of the frequency; each channel of mean 0 and variance 1."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]) + 1 / SIDE
    smooth = np.fft.irfft2(np.fft.rfft2(noise) * frequency**-decay, (SIDE, SIDE))
    mean, deviation = smooth.mean((1, 2), keepdims=True), smooth.std((1, 2), keepdims=True)
    return np.moveaxis((smooth - mean) / deviation, 0, -1).astype(np.float32)
