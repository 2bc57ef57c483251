"""Four networks on 64 x 64 colour images, trained, measured and compared on an accelerator by one command.

Run `python benchmarks/gpu.py` on a machine with a GPU or TPU, within 25 minutes as estimated from FLOPs (it has not
been run on one yet); `--smoke` is the same with tiny networks and 8 x 8 images, about a minute on a CPU. Writes
`benchmarks/results/gpu.json`, `_cost.png` and `_seconds.png`; with `--smoke` nothing.

The images are synthetic: discs and boxes of random colours before a shaded background, drawn here. Training is
in bfloat16 (`precision = "bfloat16"`), in `--out`, and continues there after an interruption. Then the networks compute
in bfloat16 while sampling too, with a float32 state: gamma and plans come from a calibration of just these levels, and
errors are distances to a fine solution of the finest one as it is, in bfloat16. How far that is from the same
solution in float32 is reported beside: below it, errors mean little.
"""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from _curves import draw_curves
from _harness import RESULTS, write_results
from _image_report import measured_gamma
from _ladder_study import best_grid, compare, Effort, EULER, ladder_problem, MULTISTEP, report
from _methods import Batch
from _rivals import Heun, march, Plain

import mlem_jax as ml
from mlem_jax.diffusion import calibrate_ladder, Ladder, MixedPrecision, train_ladder, Training
from mlem_jax.diffusion._ladder import config_text, ladder_of_flops, METHODS
from mlem_jax.plot import samples, save_figure


class Size(NamedTuple):
    """Side of an image, how many, million FLOPs of the levels, training, pilots, steps of the calibration,
    methods of the plans' steps, and what is compared."""

    side: int
    images: int
    mflops: tuple[float, ...]
    training: Training
    pilots: int
    steps: int
    methods: tuple[ml.AbstractMethod, ...]
    effort: Effort


SIZES = {
    "smoke": Size(
        8,
        64,
        (0.02, 0.05, 0.15, 0.4),
        Training(steps=20, match_steps=20, batch_size=16, warmup_steps=5, precision="bfloat16"),
        4,
        16,
        METHODS[:1],
        Effort(32, (4, 8), (4,), (3.0, 6.0), {EULER: (4,)}, 2, 1, 1, 1),
    ),
    "full": Size(
        64,
        20_000,
        (8.0, 60.0, 450.0, 3000.0),
        Training(steps=8000, match_steps=8000, batch_size=256, precision="bfloat16"),
        64,
        128,
        METHODS,
        Effort(
            512,
            (8, 16, 32, 64, 128),
            (6, 8, 10, 12, 16, 20, 25),
            (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0),
            {EULER: (16, 32, 64), MULTISTEP: (8, 12, 20)},
            64,
            3,
            3,
            5,
        ),
    ),
}


def colour_images(count: int, side: int, *, seed: int = 0) -> np.ndarray:
    """Bytes `(count, side, side, 3)`: a background shaded from one colour to another, and before it three shapes,
    discs or boxes, with edges one pixel soft."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j].astype(np.float32)
    found = np.empty((count, side, side, 3), np.uint8)
    for image in found:
        angle, (low, high) = draw.uniform(0, 2 * np.pi), draw.uniform(-0.6, 0.6, (2, 3))
        along = 0.5 + 0.5 * (np.cos(angle) * (2 * x - 1) + np.sin(angle) * (2 * y - 1)) / np.sqrt(2)
        pixels = low + along[..., None] * (high - low)
        for _ in range(3):
            centre, radius, colour = (
                draw.uniform(0.2, 0.8, 2),
                draw.uniform(0.08, 0.25),
                draw.uniform(-1, 1, 3),
            )
            away = np.abs(x - centre[0]), np.abs(y - centre[1])
            distance = np.hypot(*away) if draw.uniform() < 0.5 else np.maximum(*away)
            inside = np.clip(0.5 + side * (radius - distance), 0, 1)[..., None]
            pixels += inside * (colour - pixels)
        image[:] = np.round(127.5 * (pixels + 1))
    return found


def trained(size: Size, out: Path) -> Ladder:
    """The ladder in `out`, which is trained there if necessary."""
    config = ladder_of_flops((size.side, size.side, 3), size.mflops, name="shapes", training=size.training)
    out.mkdir(parents=True, exist_ok=True)
    described = out / "described.toml"
    described.write_text(config_text(config))
    images = colour_images(size.images, size.side)
    held_out = len(images) // 10
    return train_ladder(described, out / "training", images[held_out:], images[:held_out])


def in_bfloat16(ladder: Ladder) -> Ladder:
    """The same networks, computing in bfloat16."""
    narrow = tuple(MixedPrecision(network, "bfloat16") for network in ladder.networks)
    # Calibrations belong to the levels that were measured.
    return dataclasses.replace(ladder, networks=narrow, calibrations={})


def rounding(ladder: Ladder, fine: int, batch: Batch) -> float:
    """The RMS distance between the finest level's fine solutions in float32 and in bfloat16."""
    problem = ladder_problem(ladder, fine)
    end = march(Heun(Plain(problem.levels[-1], 1.0)), np.asarray(problem.ts), batch.y0)[0]()
    return float(np.sqrt(np.mean((np.asarray(end) - batch.reference) ** 2)))


def study(size: Size, out: Path) -> tuple[dict[str, Any], Batch]:
    """Training, calibration and curves, each with its seconds."""
    seconds, start = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        seconds[name], start = time.perf_counter() - start, time.perf_counter()
        print(f"{name}: {seconds[name]:.0f} s", flush=True)

    whole = trained(size, out)
    lap("training")
    ladder = in_bfloat16(whole)
    calibrations = [
        calibrate_ladder(ladder, method=method, steps=size.steps, pilots=size.pilots, progress=False)
        for method in size.methods
    ]
    print(*calibrations, sep="\n", flush=True)
    lap("calibration")
    problem = ladder_problem(ladder, size.effort.fine)
    found, _, batches = compare(problem, ladder, calibrations, size.effort, seed=8300)
    found["bfloat16_from_float32"] = rounding(whole, size.effort.fine, batches[0])
    lap("curves")
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "data": f"{size.images} synthetic images of {size.side} x {size.side} pixels, 3 colours",
        "training": dataclasses.asdict(size.training),
        "card": ladder.card,
        "gamma": measured_gamma(calibrations[0]),
        "calibrations": list(map(str, calibrations)),
        "stage_seconds": seconds,
        "peak_bytes_in_use": memory.get("peak_bytes_in_use"),
        **found,
    }, batches[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; writes no results")
    parser.add_argument("--out", type=Path, help="where the ladder is trained; runs/gpu or runs/gpu_smoke")
    arguments = parser.parse_args()
    name = "smoke" if arguments.smoke else "full"
    if name == "full" and jax.default_backend() == "cpu":
        parser.error("no accelerator was found, and on a CPU this would take days; try --smoke.")
    found, batch = study(SIZES[name], arguments.out or Path(f"runs/gpu{'_smoke' * arguments.smoke}"))
    print(found["gamma"]["words"])
    print(f"float32 and bfloat16 end {found['bfloat16_from_float32']:.4f} apart (RMS)")
    print(report(found["reach"]))
    if arguments.smoke:
        return
    rows = best_grid(found["rows"])
    for unit, label in (("cost", "evaluations of the finest network (FLOPs)"), ("seconds", "seconds")):
        curves = draw_curves(
            [(found["problem"], rows)], x=unit, x_label=label, y_label="RMS error of a pixel"
        )
        save_figure(curves, RESULTS / f"gpu_{unit}.png")
    save_figure(
        samples([("samples, mean over colours", batch.reference.mean(-1))]), RESULTS / "gpu_images.png"
    )
    print("written:", write_results("gpu", found))


if __name__ == "__main__":
    main()
