"""Drawing many samples: in batches, on many devices and hosts, with a folder that an interrupted run continues."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray, PyTree
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..._calibration.plan import Plan
from ..._custom_types import Numbers
from ..._term import find_multilevel_term
from .._ladder.ladder import Guidance, Ladder
from .._mesh import make_mesh, put_everywhere
from .._network.layers import check_label_range
from .._predictor.adapter import NoisePredictor
from .files import digest, RunFolder
from .sampler import draw_batches, missing, Sampler, split


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """What [`mlem_jax.diffusion.sample`][] drew, on the host.

    - `images`: the samples, `(n, *shape)`.
    - `trajectories`: their states `y` at the times asked for, `(n, times, *shape)`, or `None`.
    - `indices`: which samples these are, `(n,)`; all of them, but for one process of many.
    """

    images: Float[np.ndarray, "n ..."]
    trajectories: Float[np.ndarray, "n times ..."] | None
    indices: Int[np.ndarray, " n"]


def sample(
    levels: Ladder | Sequence[NoisePredictor],
    *,
    n: int,
    plan: Plan,
    key: PRNGKeyArray,
    shape: tuple[int, ...] | None = None,
    stochasticity: float | int = 0.0,
    args: PyTree = None,
    labels: PyTree = None,
    guidance: Guidance | None = None,
    save_at: Numbers | None = None,
    batch_size: int = 64,
    coin_group: int = 64,
    devices: Sequence[Any] | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> Samples:
    r"""Draws `n` samples with a plan.

    !!! example

        ```python
        ladder = load_ladder()
        plan = ladder.calibration().plan(budget=12)
        found = sample(ladder, n=1000, plan=plan, key=jr.key(0), out="clothes")  # again after a crash: goes on
        save_grid("clothes.png", found.images[:64])

        predictors = [NoisePredictor(small, process), NoisePredictor(large, process)]
        sample(predictors, shape=(32, 32, 3), n=64, labels=jnp.arange(64) % 10, plan=plan, key=jr.key(0))
        ```

    Sample `i` is a function of `key`, `i` and the plan: its noise has the key `fold_in(key, i)`, its coins are
    those of its group `i // coin_group`. `n`, `batch_size`, the devices and interruptions do not change it, but
    for rounding. Samples of one group share their coins, so that a level runs only where its coin comes up: each
    keeps its law, but random coins correlate the samples of a group. Groups are independent. The default
    coins of a plan draw nothing at random and have no groups.

    **Many hosts:** under `jax.distributed` each process draws its share of the batches on its own devices and
    returns that share; no process waits for another. With `out`, a folder that all can reach, the same call in one
    process afterwards draws nothing and gathers the whole.

    **Arguments:**

    - `levels`: a [`mlem_jax.diffusion.Ladder`][], or [`mlem_jax.diffusion.NoisePredictor`][]s, cheapest first,
        for single samples: all levels for which the plan was made. Their processes may differ.
    - `n`: how many; `key`, from which everything random comes.
    - `plan`: from `Calibration.plan`, made for the same `stochasticity`. Sampling starts from pure noise at
        `s = plan.ts[0]` and ends at `plan.ts[-1]`.
    - `shape`: of one sample. Only without a ladder, which knows it.
    - `stochasticity`: 0 for the probability flow, 1 for the reverse SDE, see
        [`mlem_jax.diffusion.StochasticDrift`][].
    - `args`: what every sample hands to the levels as their `args`; or
    - `labels`: arrays with a leading axis of `n`: what each sample hands to them instead.
    - `guidance`: of a ladder with classes, one scale or one for each level, see
        [`mlem_jax.diffusion.Guided`][]; the plan's calibration is to be made with the same. Only with a ladder.
    - `save_at`: decreasing values of `s` between `plan.ts[0]` and `plan.ts[-1]` at which to keep the trajectories,
        linear between steps.
    - `batch_size`: samples that one device holds at a time; bounds its memory. With random coins, at most
        `coin_group` are.
    - `coin_group`: samples that share their coins. Another number makes other samples, if coins are random.
    - `devices`: by default all that this process has.
    - `out`: folder where finished batches are kept, and from which an interrupted run continues; at the end it
        holds `samples.npz`, with `images` and perhaps `trajectories`.
    - `progress`: whether to show a progress bar.

    Raises `ValueError` for bad arguments, levels that do not fit each other or the plan, and, before anything is
    drawn, for a folder of another run (`FileExistsError` for a folder of other files); `FloatingPointError`
    naming level, step and time for a network's output that is not finite; `OSError` for a full disk, with the
    finished batches kept.
    """
    predictors, shape = _levels_and_shape(levels, shape, guidance)
    labels = None if labels is None else jax.tree.map(jnp.asarray, labels)
    _check(n, batch_size, coin_group, key, args, labels)
    if isinstance(levels, Ladder) and levels.config.classes is not None:
        for leaf in jax.tree.leaves((args, labels)):
            check_label_range("The ladder", np.asarray(leaf), levels.config.classes)
    random_coins = not plan.deterministic
    sampler = _sampler(
        predictors, plan, key, shape, stochasticity, args, save_at, coin_group if random_coins else None
    )
    _check_levels(sampler, plan.levels, labels)
    folder = None if out is None else RunFolder(out, _description(sampler, plan, key, n, labels))
    finished = None if folder is None else folder.result()
    if finished is not None:
        return Samples(finished["images"], finished.get("trajectories"), np.arange(n))

    dtype = sampler.ts.dtype
    whole = {"images": np.empty((n, *shape), dtype)}
    if sampler.save_at is not None:
        whole["trajectories"] = np.empty((n, len(sampler.save_at), *shape), dtype)
    there = np.zeros(n, bool)

    def take(start: int, stop: int, arrays: dict[str, np.ndarray]) -> None:
        there[start:stop] = True
        for name, array in whole.items():
            array[start:stop] = arrays[name]

    if folder is not None:
        for start, stop, arrays in folder.batches():
            take(start, stop, arrays)
    mesh = make_mesh(tuple(devices or jax.local_devices()))
    processes = jax.process_count()
    group = sampler.coin_group or n
    size = min(batch_size, group, math.ceil(n / (mesh.size * processes)))
    # By a rule that does not look at what is there, lest two processes divide differently.
    share = split(n, size, group)[jax.process_index() :: processes]
    todo = [rest for job in share for rest in missing(job, there)]
    mine = np.concatenate([np.arange(0), *(np.arange(*job) for job in share)])
    sampler = put_everywhere(mesh, sampler)
    columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress or jax.process_index() > 0) as bar:
        task = bar.add_task("", total=len(mine), completed=int(there[mine].sum()))
        for first in range(0, len(todo), mesh.size):
            jobs = todo[first : first + mesh.size]
            drawn = draw_batches(mesh, sampler, jobs, size, labels, plan.levels)
            for (start, stop), arrays in zip(jobs, drawn, strict=True):
                if folder is not None:
                    folder.add(start, stop, arrays)
                take(start, stop, arrays)
                bar.advance(task, stop - start)
    if processes > 1:
        whole = {name: array[mine] for name, array in whole.items()}
    elif folder is not None:
        folder.finish(whole)
    return Samples(whole["images"], whole.get("trajectories"), mine)


def _levels_and_shape(
    levels: Ladder | Sequence[NoisePredictor], shape: tuple[int, ...] | None, guidance: Guidance | None
) -> tuple[tuple[NoisePredictor, ...], tuple[int, ...]]:
    if isinstance(levels, Ladder):
        if shape is not None:
            raise ValueError(
                f"A ladder knows the shape of its images, {levels.config.shape}; leave out shape."
            )
        return levels.predictors(guidance=guidance), levels.config.shape
    if not isinstance(levels, Sequence) or not all(isinstance(x, NoisePredictor) for x in levels):
        raise ValueError(
            "sample needs a Ladder, such as load_ladder(), or a list of NoisePredictors, cheapest first, and was "
            f"given {type(levels).__name__}. Write NoisePredictor(network, process, prediction)."
        )
    if guidance is not None:
        raise ValueError(
            f"guidance={guidance} is for a ladder. Write NoisePredictor(Guided(network, scale, null), ...) for each "
            "level instead."
        )
    if shape is None:
        raise ValueError("sample needs the shape of one sample; write for example shape=(32, 32, 3).")
    return tuple(levels), tuple(shape)


def _check(n: int, batch_size: int, coin_group: int, key: Any, args: PyTree, labels: PyTree) -> None:
    for name, value in (("n", n), ("batch_size", batch_size), ("coin_group", coin_group)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"sample was given {name}={value!r}; an integer of at least 1 is expected.")
    if isinstance(key, int):
        raise ValueError(f"sample was given key={key}; write key=jax.random.key({key}).")
    if labels is not None and args is not None:
        raise ValueError("Give args, the same for all samples, or labels, one for each; not both.")
    for leaf in jax.tree.leaves(labels):
        if leaf.ndim == 0 or leaf.shape[0] != n:
            raise ValueError(
                f"labels has an array of shape {leaf.shape} for n={n} samples; one entry per sample is expected, "
                f"shape ({n}, ...). For the same for all write args=..."
            )


def _sampler(
    predictors: tuple[NoisePredictor, ...],
    plan: Plan,
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    stochasticity: float | int,
    args: PyTree,
    save_at: Numbers | None,
    coin_group: int | None,
) -> Sampler:
    if plan.levels[-1] >= len(predictors):
        raise ValueError(
            f"The plan uses level {plan.levels[-1] + 1} and there are {len(predictors)} levels. Pass those that "
            "were calibrated."
        )
    times = None
    if save_at is not None:
        given = np.asarray(save_at, float)
        within = given.size and np.all((given <= plan.ts[0]) & (given >= plan.ts[-1]))
        if given.ndim != 1 or not within or np.any(np.diff(given) >= 0):
            raise ValueError(
                f"save_at={given.tolist()}; decreasing values of s between {plan.ts[0]:g} and {plan.ts[-1]:g} "
                "are expected."
            )
        # The ends are those of the grid, whatever the rounding of the one given.
        times = jnp.clip(jnp.asarray(given, plan.grid.dtype), plan.grid[-1], plan.grid[0])
    noise_key, path_key, coin_key = jr.split(key, 3)
    # What is not finite is found afterwards, and explained.
    settings = {"check_finite": False} if len(plan.levels) > 1 else {}
    sampler = Sampler(
        predictors=tuple(predictors[k] for k in plan.levels),
        solver=plan.solver(key=coin_key, **settings),
        ts=plan.grid,
        save_at=times,
        noise_key=noise_key,
        path_key=path_key,
        args=args,
        costs=tuple(plan.costs.tolist()),
        shape=shape,
        stochasticity=float(stochasticity),
        coin_group=coin_group,
    )
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, sampler)


def _check_levels(sampler: Sampler, levels: tuple[int, ...], labels: PyTree) -> None:
    """Raises `ValueError` for levels that do not fit the shape or each other, in a second and before any file."""
    label = None if labels is None else jax.tree.map(lambda leaf: leaf[0], labels)
    index = jnp.asarray(0)
    _, term = find_multilevel_term(sampler.terms(index))
    args = sampler.args if label is None else label
    start = sampler.start(index)
    try:
        term.check_levels(sampler.ts[0], start, args)
    except ValueError:
        # Networks do not know which level they are.
        for level, drift in zip(levels, term.levels, strict=True):
            try:
                eqx.filter_eval_shape(drift, sampler.ts[0], start, args)
            except ValueError as error:
                raise ValueError(f"Level {level + 1} does not fit: {error}") from error
        raise


def _description(sampler: Sampler, plan: Plan, key: PRNGKeyArray, n: int, labels: PyTree) -> dict[str, Any]:
    """What decides the samples, but for rounding."""
    return {
        "made_by": "mlem_jax.diffusion.sample",
        "n": n,
        "key": [str(jr.key_impl(key)), np.asarray(jr.key_data(key)).tolist()],
        "plan": digest((plan.ts, plan.levels, plan.table, plan.coins)),
        "levels": [digest(predictor) for predictor in sampler.predictors],
        "shape": list(sampler.shape),
        "stochasticity": sampler.stochasticity,
        "args": digest(sampler.args),
        "labels": digest(labels),
        "save_at": None if sampler.save_at is None else np.asarray(sampler.save_at).tolist(),
        "coin_group": sampler.coin_group,
        "dtype": str(sampler.ts.dtype),
    }
