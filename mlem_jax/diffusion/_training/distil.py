"""Cheaper levels for any network: small ones that learn its output, on data or on its own samples."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Int

from ..._calibration import steps_plan
from ..._fingerprint import level_id
from ..._io import make_writable
from ..._solver import AdamsBashforth
from .._data import data_fingerprint, Images
from .._ladder import (
    as_stored,
    calibrate_methods,
    Config,
    count_flops,
    count_parameters,
    Ladder,
    ladder_of_flops,
    load_ladder,
    PredictorLadder,
    save_ladder,
    Training,
)
from .._network import AbstractNetwork
from .._predictor import NoisePredictor
from .._process import VariancePreserving
from .._sampling.sample import sample
from .batches import check_labels, held_out_losses, Labelled
from .board import check_tensorboard, open_board
from .distillation import Distillation
from .run import begin_run, check_room, DataIdentity, LADDER
from .teacher import Teacher
from .timed_sizes import find_sizes, remember_sizes
from .train import train_networks

# Noise levels where the levels' differences move images most, as for the ladder that is shipped.
DISTILLING = Training(match_learning_rate=1e-3, match_log_normal=(0.5, 1.6), label_dropout=0.0)
# Second-order steps of the network's own samples; with more the images hardly change (benchmarks/frontier.py).
_SAMPLE_STEPS = 20
# Evaluations for samples, as a share of those for training.
_SAMPLE_SHARE = 0.25
_HELD_OUT_SHARE, _MOST_HELD_OUT = 0.1, 1000
_CALIBRATIONS, _SAMPLES = "calibrations", "samples"
# Parts of calibrations that are not finished.
_PARTS = "calibrations.unfinished"
_OWN = "its own samples"


def distil(
    network: NoisePredictor,
    out: str | Path,
    *,
    mflops: Sequence[float | int] | None = None,
    seconds: Sequence[float | int] | None = None,
    images: Images | None = None,
    labels: Int[np.ndarray, " n"] | None = None,
    shape: tuple[int, ...] | None = None,
    classes: int | None = None,
    samples: int | None = None,
    training: Training = DISTILLING,
    pilots: int = 32,
    progress: bool = True,
) -> Distillation:
    """Makes cheaper levels for a network, whatever it predicts and whoever trained it, and calibrates them with it.

    The levels are [`mlem_jax.diffusion.UNet`][]s of given FLOPs or seconds, which learn the network's output on noised
    images: on the data's, or where there are none on images that it draws itself from noise, with 20 second-order steps
    each. They share the network's evaluations, `training.batch_size` in each of `training.match_steps` steps.

    Noised again, its own images stand for the states on its trajectories. At each noise level both have the same
    distribution if the network is the exact denoiser of the images that it draws and the steps are short: the
    probability flow and the reverse SDE have the marginals of the noising process (Song et al. 2021, Score-based
    generative modeling through stochastic differential equations). For a trained network they differ as far as it
    differs from such a denoiser. Noise is drawn anew in each step, whereas stored states would be repeated.

    !!! example

        ```python
        large = load_network("ddpm-large")
        found = distil(large, "ddpm-small", mflops=[1, 6])
        print(found)  # cost of each level, and its distance to the network
        plan = found.ladder.plan(budget=4)
        sample(found.ladder, n=64, plan=plan, key=jr.key(0))
        ```

    Everything is kept in `out`: the network's samples, checkpoints every half minute and on SIGINT and SIGTERM, the
    finished levels as a ladder in `out/ladder`, their calibrations with the network in `out/calibrations`. The same
    call continues after an interruption, and afterwards returns the finished result. The levels alone are
    `load_ladder(f"{out}/ladder").predictors()`.

    **Arguments:**

    - `network`: a [`mlem_jax.diffusion.NoisePredictor`][]; with guidance inside, the levels learn the guided one.
    - `mflops`: million FLOPs of each level for one image, increasing, less than the network's. Each level should be 4
        to 8 times cheaper than the next.
    - `seconds`: given instead of `mflops`: wall-clock seconds of each level for one image, measured in batches of 32 on
        this machine. They are met to about 10%, because widths are integers and times vary. The sizes that were found
        are kept in the folder.
    - `images`, `labels`: data as it was trained on, bytes or numbers in `[-1, 1]` (latents as they are), of which a
        tenth is held out. By default the network's own samples, with one label after another.
    - `shape`, `classes`: of a network that does not know them, see [`mlem_jax.diffusion.PredictorLadder`][].
    - `samples`: number of images that the network draws; by default their evaluations are a quarter of those of the
        training.
    - `training`: its `match_steps`, `match_learning_rate`, `match_log_normal`, batch size and so on; the finest level's
        settings are not used.
    - `pilots`: images on which the levels are calibrated at the end; 0 leaves that out.

    Raises `ValueError` for sizes that cannot be built, images or labels that do not fit the network, a network whose
    labels are not integers, or a folder that was begun with another network, data or settings; later what
    [`mlem_jax.diffusion.train_ladder`][] raises.
    """
    out = Path(out)
    check_tensorboard(training.tensorboard)
    whole = PredictorLadder([network], shape=shape, classes=classes)
    timed, sizes = find_sizes(whole, mflops, seconds, out)
    config = _describe(whole, sizes, out.resolve().name, training)
    if whole.labels is not None and whole.classes is None:
        raise ValueError("distil needs integers as labels; write classes=... with their number.")
    count = _count(samples, training) if images is None else len(images)
    if images is not None:
        _check_images(images, labels, config)
    make_writable(out, "Choose another folder.")
    if timed is not None:
        remember_sizes(out, timed)
    source = _OWN if images is None else "images in memory"
    code = f"{level_id(network)}-{data_fingerprint(images, labels) if images is not None else count}"
    held = _held_out(count)
    begin_run(
        out, config, DataIdentity(f"{type(network.network).__name__} and {source}", code, count - held, held)
    )
    if not (out / LADDER).is_dir():
        check_room(out, config.networks())
        if images is None:
            images, labels = _own_samples(whole, out / _SAMPLES, count, config.training.seed, progress)
        kept, held_out = (
            (images[part], None if labels is None else labels[part])
            for part in (slice(0, count - held), slice(count - held, count))
        )
        teacher = Teacher(network, config)
        trained = _train(config, out, kept, teacher, progress)
        card = _card(config, trained, teacher, held_out, whole, source, count)
        if timed is not None:
            card["timed"] = timed
        save_ladder(out / LADDER, Ladder(trained, config, card, {}))
    return _finished(out, whole, pilots, progress)


def _train(
    config: Config, out: Path, data: Labelled, teacher: Teacher, progress: bool
) -> tuple[AbstractNetwork, ...]:
    """The levels, trained and rounded as they will be stored."""
    training, students = config.training, config.networks()
    with open_board(training.tensorboard, out / "tensorboard", range(1, len(students) + 1)) as board:
        (trained,), _ = train_networks(
            config,
            students,
            data[0],
            out / "smaller",
            steps=training.match_steps,
            peak_learning_rate=training.match_learning_rate,
            labels=data[1],
            teacher=teacher,
            label="distilling",
            progress=progress,
            record=None if board is None else board.losses,
        )
    return tuple(map(as_stored, trained))


def _describe(whole: PredictorLadder, mflops: Sequence[float | int], name: str, training: Training) -> Config:
    """The levels to be made. Raises `ValueError` for a network of other data than pictures, or sizes beyond its own."""
    if len(whole.shape) != 3:
        raise ValueError(
            f"distil was given a network for arrays of shape {whole.shape}; (height, width, channels) is expected."
        )
    height, width, channels = whole.shape
    own = whole.level_costs()[0] / 1e6
    too_large = [size for size in mflops if size >= own]
    if too_large:
        raise ValueError(
            f"mflops={list(mflops)}: the network itself takes {own:.3g} million FLOPs; levels of at most "
            f"{own / 4:.3g} are expected."
        )
    if training.match_steps < 1:
        raise ValueError("distil needs training.match_steps of at least 1.")
    process = whole.process
    found = ladder_of_flops((height, width, channels), mflops, name=name, training=training)
    return dataclasses.replace(
        found, classes=whole.classes, process=VariancePreserving(process.s_min, process.s_max)
    )


def _count(samples: int | None, training: Training) -> int:
    if samples is None:
        evaluations = _SAMPLE_SHARE * training.match_steps * training.batch_size
        samples = max(round(evaluations / _SAMPLE_STEPS), 4 * training.batch_size)
    if samples < 2 * training.batch_size:
        raise ValueError(
            f"samples={samples}; at least {2 * training.batch_size} are expected, two batches of the training."
        )
    return samples


def _held_out(count: int) -> int:
    return max(1, min(int(_HELD_OUT_SHARE * count), _MOST_HELD_OUT))


def _check_images(images: Images, labels: Int[np.ndarray, " n"] | None, config: Config) -> None:
    if images.shape[1:] != config.shape:
        raise ValueError(
            f"distil was given images of shape {images.shape[1:]} for a network for images of {config.shape}."
        )
    check_labels(config.classes, labels, len(images))


def _own_samples(
    whole: PredictorLadder, folder: Path, count: int, seed: int, progress: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Images that the network draws from noise, and their labels. Continued where they were interrupted."""
    labels = None if whole.classes is None else jnp.arange(count) % whole.classes
    found = sample(
        whole,
        n=count,
        plan=steps_plan(whole.process.grid(_SAMPLE_STEPS), method=AdamsBashforth("log")),
        key=jr.key(seed),
        labels=labels,
        out=folder,
        progress=progress,
    )
    return found.images, None if labels is None else np.asarray(labels)


def _card(
    config: Config,
    trained: tuple[AbstractNetwork, ...],
    teacher: Teacher,
    held_out: Labelled,
    whole: PredictorLadder,
    source: str,
    count: int,
) -> dict[str, Any]:
    """Measurements after the training, the network's among them."""
    losses = held_out_losses(config, (*trained, teacher), *held_out)
    training, own = config.training, whole.level_costs()[0]
    flops = [count_flops(network) for network in trained]
    return {
        "name": config.name,
        "parameters": [count_parameters(network) for network in trained],
        "flops_per_image": flops,
        "held_out_loss": losses,
        "held_out_images": len(held_out[0]),
        "training_images": count,
        "distilled_on": source,
        "network_flops": own,
        # In evaluations of the network on one image. A step of training takes three evaluations of a level.
        "cost": {
            "samples": count * _SAMPLE_STEPS if source == _OWN else 0,
            "network": training.match_steps * training.batch_size,
            "levels": [3 * training.match_steps * training.batch_size * f / own for f in flops],
        },
    }


def _finished(out: Path, whole: PredictorLadder, pilots: int, progress: bool) -> Distillation:
    """What is in the folder, with calibrations, which are measured if they are missing."""
    levels = load_ladder(out / LADDER)
    ladder = PredictorLadder(
        [*levels.predictors(), *whole.predictors()], shape=whole.shape, classes=whole.classes
    )
    calibrations, parts = out / _CALIBRATIONS, out / _PARTS
    if calibrations.is_dir() and not parts.is_dir():
        ladder = ladder.load_calibrations(calibrations)
    elif pilots:
        # What a call that was interrupted had begun to write.
        shutil.rmtree(calibrations, ignore_errors=True)
        ladder = calibrate_methods(ladder, pilots=pilots, keep_in=parts, progress=progress)
        ladder.save_calibrations(calibrations)
        shutil.rmtree(parts, ignore_errors=True)
    return Distillation(ladder, levels)
