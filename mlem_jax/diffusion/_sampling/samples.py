"""The result of `sample`."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, PyTree, Shaped


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """What [`mlem_jax.diffusion.sample`][] drew, on the host.

    - `images`: the samples, `(n, *shape)`; bytes if these were asked for.
    - `trajectories`: their states `y` at the times asked for, `(n, times, *shape)`, or `None`.
    - `indices`: the indices of these samples, `(n,)`: all, or in one of several processes its share.
    - `labels`: the label of each sample, or `None`.
    """

    images: Shaped[np.ndarray, "n ..."]
    trajectories: Shaped[np.ndarray, "n times ..."] | None
    indices: Int[np.ndarray, " n"]
    labels: PyTree = None

    def __repr__(self) -> str:
        def shape(array: Any) -> str:
            return f"{array.dtype} {array.shape}"

        parts = [f"images={shape(self.images)}"]
        if self.images.size:
            parts[0] += f" from {self.images.min():.3g} to {self.images.max():.3g}"
        if self.trajectories is not None:
            parts.append(f"trajectories={shape(self.trajectories)}")
        if len(self.indices):
            parts.append(f"indices={self.indices[0]} to {self.indices[-1]}")
        if self.labels is not None:
            parts.append(f"labels={jax.tree.map(shape, self.labels)}")
        return f"Samples({', '.join(parts)})"
