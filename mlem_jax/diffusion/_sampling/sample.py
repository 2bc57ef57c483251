"""Drawing many samples: in batches, on many devices and hosts, with a folder that an interrupted run continues."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh
from jaxtyping import ArrayLike, Bool, PRNGKeyArray, PyTree

from ..._calibration import AbstractPlan
from ..._checks import as_key
from ..._custom_types import Numbers
from ..._fingerprint import fingerprint
from ..._progress import show_progress
from .._ladder import AbstractLadder, Guidance
from .._mesh import make_mesh, put_everywhere
from .._predictor import NoisePredictor
from .batches import Batch, draw_batches, missing, split
from .callback import step_report, StepCallback
from .checks import (
    check_given,
    check_labels,
    check_levels,
    check_plan,
    levels_and_shape,
    make_sampler,
    positive_integer,
    saved_times,
)
from .given import Given
from .pictures import as_bytes as to_bytes
from .run_folder import Arrays, RunFolder
from .sampler import Sampler
from .samples import Samples


def sample(
    levels: AbstractLadder | Sequence[NoisePredictor],
    *,
    n: Any,
    plan: AbstractPlan,
    key: PRNGKeyArray,
    shape: tuple[int, ...] | None = None,
    stochasticity: float | int = 0.0,
    args: PyTree = None,
    labels: PyTree = None,
    guidance: Guidance | None = None,
    start_from: ArrayLike | None = None,
    start_at: float | int | None = None,
    known: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    save_at: Numbers | None = None,
    callback: StepCallback | None = None,
    batch_size: Any = 64,
    coin_group: Any = 64,
    devices: Sequence[Any] | None = None,
    out: str | Path | None = None,
    as_bytes: bool = False,
    progress: bool = True,
) -> Samples:
    r"""Draws `n` samples with a plan.

    !!! example

        ```python
        ladder = load_ladder()
        plan = ladder.calibration().plan(budget=12)
        found = sample(ladder, n=1000, plan=plan, key=jr.key(0), out="clothes")  # the same again continues
        save_grid("clothes.png", found.images[:64])

        predictors = [NoisePredictor(small, process), NoisePredictor(large, process)]
        sample(predictors, shape=(32, 32, 3), n=64, labels=jnp.arange(64) % 10, plan=plan, key=jr.key(0))
        ```

    Sample `i` is a function of `key`, `i` and the plan: its noise has the key `fold_in(key, i)`, its coins are
    those of its group `i // coin_group`. `n`, `batch_size`, the devices and interruptions do not change it, but
    for rounding. Samples of one group share their coins, so that a level is evaluated only in steps in which it fires.
    The law of each sample is unchanged, but random coins correlate the samples of a group. Groups are independent.
    The default coins of a plan are deterministic and need no groups.

    **Many hosts:** under `jax.distributed` each process draws its share of the batches on its own devices and
    returns that share; no process waits for another. With `out`, a folder that all can reach, the same call in one
    process afterwards draws nothing and gathers the whole.

    **Arguments:**

    - `levels`: a [`mlem_jax.diffusion.Ladder`][] or [`mlem_jax.diffusion.PredictorLadder`][], or
        [`mlem_jax.diffusion.NoisePredictor`][]s, cheapest first, for single samples: all levels for which the plan was
        made. Their processes may differ.
    - `n`: how many; `key`, from which everything random comes.
    - `plan`: of any kind, from `Calibration.plan` or `Ladder.plan`, made for the same `stochasticity`. Sampling
        starts from pure noise at `s = plan.ts[0]` and ends at `plan.ts[-1]`.
    - `shape`: of one sample. Only without a ladder, which knows it.
    - `stochasticity`: 0 for the probability flow, 1 for the reverse SDE, see
        [`mlem_jax.diffusion.StochasticDrift`][].
    - `args`: passed to the levels as their `args`, the same for every sample; or
    - `labels`: arrays with a leading axis of `n`, of which each sample passes its own entry instead.
    - `guidance`: of a ladder with classes, one scale or one for each level, see
        [`mlem_jax.diffusion.Guided`][]; the plan's calibration is to be made with the same. Only with a ladder.
    - `start_from`, `start_at`: images `(n, *shape)`, or one for all, and a noise level `s`: instead of from pure noise
        sampling starts from these images, noised to the first of the plan's times at or below `start_at` (SDEdit, Meng
        et al. 2022), and takes the remaining steps, with the same evaluations. Where no step remains, which includes
        `start_at=0`, the images come back as they are.
    - `known`, `mask`: images `(n, *shape)`, or one for all, and where their pixels are known, in any shape that
        broadcasts to them (inpainting). Samples have exactly the known pixels; the networks see these noised.
    - `save_at`: decreasing values of `s` between `plan.ts[0]` and `plan.ts[-1]` at which to keep the trajectories,
        linear between steps.
    - `callback`: called on the host after each step of each batch, as `callback(step, s, states, indices)`: the number
        of the step, from 1, the noise level that it reached, the states `y` of these samples, `(m, *shape)`, and their
        indices, `(m,)`, as NumPy arrays. It changes nothing, and `sample` raises what it raises. Every device reports
        its own samples. The same function again saves compiling again, so name it rather than write a `lambda`.
    - `batch_size`: samples that one device holds at a time; bounds its memory. With random coins, at most
        `coin_group` are.
    - `coin_group`: samples that share their coins. Another number makes other samples, if coins are random.
    - `devices`: by default all that this process has.
    - `out`: folder where finished batches are kept, and from which an interrupted run continues. In the end it
        holds `samples.npz`, with `images` and, if there are any, `trajectories` and `labels`. A larger `n` later adds
        samples to it, of which the first ones stay as they are.
    - `as_bytes`: whether images are returned and stored as bytes, 0 to 255 for -1 to 1, instead of the numbers.
    - `progress`: whether to show progress.

    Raises, before anything is drawn: `ValueError` for bad arguments, for levels that do not fit each other, for a
    plan made for other levels or another process, guidance or stochasticity, and for a folder of another run
    (`FileExistsError` for one of other files, `BlockingIOError` for one in use, `OSError` for a place that cannot be
    written). Later: `FloatingPointError` naming level, step and time for a network's output that is not finite;
    `OSError` for a full disk, with the finished batches kept.
    """
    n = positive_integer("n", n)
    batch_size = positive_integer("batch_size", batch_size)
    coin_group = positive_integer("coin_group", coin_group)
    key = as_key("sample", key)
    labels = None if labels is None else jax.tree.map(jnp.asarray, labels)
    check_labels(n, args, labels, levels)
    predictors, shape = levels_and_shape(levels, shape, guidance)
    check_plan(plan, predictors, shape, float(stochasticity))
    given = check_given(
        Given(labels, start_from, known, mask), start_at=start_at, n=n, shape=shape, dtype=plan.grid.dtype
    )
    nothing_left = start_at is not None and start_at < plan.ts[-2]
    if start_at is not None and not nothing_left:
        plan = plan.cut(float(start_at))
    sampler = make_sampler(
        predictors,
        plan,
        key,
        shape=shape,
        stochasticity=float(stochasticity),
        args=args,
        save_at=saved_times(save_at, plan),
        coin_group=coin_group,
        report=None if callback is None else step_report(callback),
    )
    check_levels(sampler, plan.levels, given)
    job = _Job(sampler, plan, n, given, as_bytes, progress)
    if nothing_left:
        job.take_origins()
    mesh = make_mesh(tuple(devices or jax.local_devices()))
    if out is None:
        return job.samples(job.draw(mesh, batch_size, None))
    folder = RunFolder(out, _description(sampler, plan, key, given, as_bytes))
    with folder.lock(shared=jax.process_count() > 1):
        job.take_from(folder)
        return job.samples(job.draw(mesh, batch_size, folder))


class _Job:
    """The samples drawn so far, and how the others are drawn."""

    def __init__(
        self, sampler: Sampler, plan: AbstractPlan, n: int, given: Given, as_bytes: bool, progress: bool
    ):
        self.sampler, self.levels, self.given = sampler, plan.levels, given
        self.as_bytes, self.progress = as_bytes, progress
        self.label_arrays = _label_arrays(given.label)
        self.there: Bool[np.ndarray, " n"] = np.zeros(n, bool)
        # How many samples the folder's result has.
        self.stored = 0
        dtype = sampler.ts.dtype
        self.whole: Arrays = {"images": np.empty((n, *sampler.shape), np.uint8 if as_bytes else dtype)}
        if sampler.save_at is not None:
            self.whole["trajectories"] = np.empty((n, len(sampler.save_at), *sampler.shape), dtype)

    def take(self, start: int, arrays: Arrays) -> None:
        """Takes the samples from `start` on, as far as they are asked for."""
        stop = min(start + len(arrays["images"]), len(self.there))
        self.there[start:stop] = True
        for name, array in self.whole.items():
            array[start:stop] = arrays[name][: max(stop - start, 0)]

    def take_origins(self) -> None:
        """Takes the images from which samples would start, where no step remains."""
        if self.sampler.save_at is not None:
            raise ValueError("There are no steps of which save_at could keep states. Leave it out.")
        self.take(0, {"images": self._finished(np.asarray(self.given.origin), 0)})

    def _finished(self, images: np.ndarray, start: int) -> np.ndarray:
        """Images of the samples from `start` on, with the known pixels and as they are stored."""
        if self.given.known is not None:
            rows = slice(start, start + len(images))
            images = np.where(self.given.mask[rows], self.given.known[rows], images)
        return to_bytes(images) if self.as_bytes else images

    def take_from(self, folder: RunFolder) -> None:
        """Takes the samples found in a folder."""
        for start, arrays in folder.found(self.label_arrays):
            self.take(start, arrays)
        self.stored = folder.stored

    def draw(self, mesh: Mesh, batch_size: int, folder: RunFolder | None) -> np.ndarray:
        """Draws this process's share of what is missing; returns the indices of the share."""
        n, processes = len(self.there), jax.process_count()
        group = self.sampler.coin_group or n
        size = min(batch_size, group, math.ceil(n / (mesh.size * processes)))
        # By a rule that does not depend on the batches found in the folder, so that all processes divide the work
        # alike.
        share = split(n, size, group)[jax.process_index() :: processes]
        todo = [rest for batch in share for rest in missing(batch, self.there)]
        mine = np.concatenate([np.arange(0), *(np.arange(*batch) for batch in share)])
        if todo:
            self._draw(mesh, todo, size, folder, int(self.there[mine].sum()), len(mine))
        if processes == 1 and folder is not None and n > self.stored:
            folder.finish({**self.whole, **self.label_arrays})
        return mine

    def _draw(
        self, mesh: Mesh, todo: list[Batch], size: int, folder: RunFolder | None, done: int, total: int
    ) -> None:
        sampler = put_everywhere(mesh, self.sampler)
        shown = self.progress and jax.process_index() == 0
        with show_progress("sampling", total=total, done=done, unit="samples", shown=shown) as progress:
            for first in range(0, len(todo), mesh.size):
                jobs = todo[first : first + mesh.size]
                drawn = draw_batches(mesh, sampler, jobs, size, self.given, self.levels)
                for (start, stop), arrays in zip(jobs, drawn, strict=True):
                    arrays["images"] = self._finished(arrays["images"], start)
                    if folder is not None:
                        owned = {name: array[start:stop] for name, array in self.label_arrays.items()}
                        folder.add(start, stop, {**arrays, **owned})
                    self.take(start, arrays)
                    progress.advance(stop - start)

    def samples(self, mine: np.ndarray) -> Samples:
        """The samples of these indices."""
        whole = self.whole
        if len(mine) < len(self.there):
            whole = {name: array[mine] for name, array in whole.items()}
        labels = jax.tree.map(lambda leaf: np.asarray(leaf)[mine], self.given.label)
        return Samples(whole["images"], whole.get("trajectories"), mine, labels)


def _label_arrays(labels: PyTree) -> Arrays:
    """Labels under the names that they have in files: `labels`, or `labels_0` and so on for several arrays."""
    leaves = jax.tree.leaves(labels)
    if len(leaves) == 1:
        return {"labels": np.asarray(leaves[0])}
    return {f"labels_{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}


def _description(
    sampler: Sampler, plan: AbstractPlan, key: PRNGKeyArray, given: Given, as_bytes: bool
) -> dict[str, Any]:
    """Everything that determines the samples, up to rounding. Of the labels only their type and shape, since a larger
    `n` has more of them."""
    try:
        return {
            "made_by": "mlem_jax.diffusion.sample",
            "key": [str(jr.key_impl(key)), np.asarray(jr.key_data(key)).tolist()],
            "plan": fingerprint((plan.ts, plan.levels, plan.solver(key=jr.key(0)))),
            "levels": [fingerprint(predictor) for predictor in sampler.predictors],
            "shape": list(sampler.shape),
            "stochasticity": sampler.stochasticity,
            "args": fingerprint(sampler.args),
            "labels": str(jax.tree.map(lambda leaf: (str(leaf.dtype), leaf.shape[1:]), given.label)),
            "start_from": fingerprint(given.origin),
            "known": fingerprint((given.known, given.mask)),
            "save_at": None if sampler.save_at is None else np.asarray(sampler.save_at).tolist(),
            "coin_group": sampler.coin_group,
            "dtype": str(sampler.ts.dtype),
            "format": "bytes" if as_bytes else "numbers",
        }
    except TypeError as error:
        raise ValueError(
            "Samples of these levels cannot be kept in a folder, because another network could continue them "
            "unnoticed. "
            f"{error} Leave out out=..., or pass arrays and numbers as fields or with eqx.Partial."
        ) from error
