"""The two loops over triangles, compiled by numba."""

import numba  # pyright: ignore[reportMissingImports]
import numpy as np


@numba.njit(cache=True, fastmath=True)
def normals(points: np.ndarray, triangles: np.ndarray, out: np.ndarray) -> None:
    """Writes into `out` each vertex's unit normal: the sum of its triangles' normals, which are as long as those are
    large, normalised."""
    out[:] = 0
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ux, uy, uz = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
        vx, vy, vz = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for corner in (a, b, c):
            out[corner, 0] += nx
            out[corner, 1] += ny
            out[corner, 2] += nz
    for i in range(out.shape[0]):
        length = (out[i, 0] ** 2 + out[i, 1] ** 2 + out[i, 2] ** 2) ** 0.5 + 1e-9
        out[i, 0] /= length
        out[i, 1] /= length
        out[i, 2] /= length


@numba.njit(cache=True, fastmath=True)
def rasterise(
    points: np.ndarray,
    triangles: np.ndarray,
    shown: np.ndarray,
    colours: np.ndarray,
    image: np.ndarray,
    depth: np.ndarray,
) -> None:
    """Draws triangles into `image`, a square: `points` are column, row and nearness; colours are interpolated, and of
    what falls on one pixel the nearest is seen. `depth` has the nearness of what is there already."""
    side = image.shape[0]
    for t in range(triangles.shape[0]):
        if not shown[t]:
            continue
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        x0, y0, x1, y1, x2, y2 = (
            points[a, 0],
            points[a, 1],
            points[b, 0],
            points[b, 1],
            points[c, 0],
            points[c, 1],
        )
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if abs(area) < 1e-9:
            continue
        left, right = max(0, int(min(x0, x1, x2))), min(side - 1, int(max(x0, x1, x2)) + 1)
        top, bottom = max(0, int(min(y0, y1, y2))), min(side - 1, int(max(y0, y1, y2)) + 1)
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                px, py = column + 0.5, row + 0.5
                # Barycentric coordinates of the pixel's centre.
                w1 = ((px - x0) * (y2 - y0) - (x2 - x0) * (py - y0)) / area
                w2 = ((x1 - x0) * (py - y0) - (px - x0) * (y1 - y0)) / area
                w0 = 1 - w1 - w2
                if w0 < 0 or w1 < 0 or w2 < 0:
                    continue
                near = w0 * points[a, 2] + w1 * points[b, 2] + w2 * points[c, 2]
                if near > depth[row, column]:
                    depth[row, column] = near
                    for k in range(3):
                        image[row, column, k] = w0 * colours[a, k] + w1 * colours[b, k] + w2 * colours[c, k]
