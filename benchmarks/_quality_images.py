"""Many images of one method, made in blocks that are kept in a folder, so that a long study can be interrupted."""

import hashlib
import re
import time
from pathlib import Path
from typing import NamedTuple

import jax.random as jr
import numpy as np
from _methods import Batch, draw, Method, Shared
from _runs import run
from jaxtyping import Float

from mlem_jax._io import write_safely

# Images that are drawn at once, and batches in a block, which is what is kept.
BATCH, BATCHES = 64, 8
BLOCK = BATCH * BATCHES


class OutOfTime(Exception):
    """The time that was given is over; what was made is kept."""


class Entry(NamedTuple):
    """A method of the study.

    - `kind`: the line of the table's curves that it belongs to.
    - `method`: how it is run.
    - `identity`: changes where the same settings would give other images, for example fitted coefficients.
    """

    kind: str
    method: Method
    identity: bytes = b""


class Made(NamedTuple):
    """Images, clipped to what a viewer shows, and the mean cost of one in finest-level evaluations."""

    images: Float[np.ndarray, "n h w c"]
    cost: float


class Maker:
    """Makes images of a problem, or reads them where they have been made.

    Image `i` has the same initial noise (and Brownian path) by every method; `seed` names the noise.
    """

    def __init__(self, problem: Shared, folder: Path, *, until: float = np.inf):
        self.problem, self.folder, self.until = problem, folder, until

    def images(self, entry: Entry, count: int, seed: int) -> Made:
        """Raises `OutOfTime` between two blocks."""
        folder = self.folder / self._name(entry, seed)
        found, costs = [], []
        for block in range(-(-count // BLOCK)):
            path = folder / f"{block:03d}.npz"
            if not path.exists():
                if time.monotonic() > self.until:
                    raise OutOfTime
                images, cost = self._block(entry.method, block, seed, min(BLOCK, count - block * BLOCK))
                if len(images) < BLOCK:
                    # Only whole blocks are kept: another count would need the rest.
                    found.append(images)
                    costs.append(cost)
                    continue
                folder.mkdir(parents=True, exist_ok=True)
                arrays = {"images": images.astype(np.float16), "cost": cost}
                write_safely(path, lambda file, arrays=arrays: np.savez(file, **arrays))
            with np.load(path) as kept:
                found.append(kept["images"].astype(np.float32))
                costs.append(float(kept["cost"]))
        return Made(np.concatenate(found)[:count], float(np.mean(costs)))

    def _block(self, method: Method, block: int, seed: int, wanted: int) -> tuple[np.ndarray, float]:
        ends, costs = [], []
        for i in range(-(-wanted // BATCH)):
            number = block * BATCHES + i
            batch = self.batch(number, seed)
            found = run(method, batch, number)
            ends.append(np.clip(found.end, -1, 1))
            costs.append(found.cost)
        return np.concatenate(ends), float(np.mean(costs))

    def batch(self, number: int, seed: int) -> Batch:
        """The initial noise of a batch of images."""
        key = jr.fold_in(jr.key(seed), number)
        return draw(self.problem, key, BATCH, lambda b: np.zeros(b.y0.shape, np.float32))

    def _name(self, entry: Entry, seed: int) -> str:
        method = entry.method
        words = "|".join((self.problem.name, method.name, method.setting, str(seed))).encode()
        digest = hashlib.sha256(words + entry.identity).hexdigest()[:12]
        return re.sub(r"\W+", "_", f"{self.problem.name} {entry.kind} {method.setting}")[:60] + "_" + digest
