"""Study 5: seconds, memory and compilation of a solve against its size.

Run `python benchmarks/scaling.py --quick` (or `--full`) on a machine that does nothing else; `--smoke` is for tests.
Writes `benchmarks/results/scaling_quick.json` and `.png` (`scaling_full`). The levels are the shipped ladder and random
features, the problems the probability flow and an ODE. Midpoint coins have a fixed number of firings of every level,
because the study measures the solver and not the error.

1. batch: seconds per image against the batch size, for ML-EM and for Euler with the same number of finest evaluations.
2. levels: two, three and four of the ladder's levels.
3. steps: 16 to 128 steps with the same evaluations.
4. devices: `diffusion.sample` on one and on two host devices, in separate processes, and their peak memory.
5. memory: the memory of the compiled solve beside its arguments, according to XLA.
6. compile: seconds of tracing and compiling against the number of levels.
7. loop: `diffeqsolve` with ML-EM against a plain `lax.scan` of the same steps, whose coins are data.

Seconds are medians of interleaved calls without compilation. The fraction of the promised speed compares a solve with
single evaluations of its levels, timed in the same rounds.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import jax.random as jr
import numpy as np
from _harness import add_sizes, RESULTS, write_results
from _ladder_study import tiny_ladder
from _scaling_parts import compilation, loop, memory, noise, plan_of, random_features, Size, times
from _scaling_report import draw_figure, report

from mlem_jax.diffusion import Ladder, load_ladder, sample
from mlem_jax.plot import save_figure

SIZES = {
    "smoke": Size((1, 2), 2, (4, 8), 4, 2, 1),
    "quick": Size((1, 4, 16, 64, 256), 16, (16, 32, 64, 128), 64, 6, 3),
    "full": Size((1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024), 64, (16, 32, 64, 128, 256, 512), 512, 10, 9),
}


def devices(count: int, name: str) -> dict[str, Any]:
    """Part 4, in a separate process with this number of devices."""
    program = [sys.executable, __file__, f"--{name}", "--devices", str(count)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}".strip()
    environment = {**os.environ, "XLA_FLAGS": flags}
    output = subprocess.run(program, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def on_these_devices(ladder: Ladder, size: Size) -> dict[str, Any]:
    """Part 4, in the process that has the devices."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = plan_of(
        ladder.config.process.grid(size.steps[-1]), tuple(range(len(ladder.networks))), ladder.flops()
    )

    def draw() -> float:
        start = time.perf_counter()
        sample(ladder, n=size.images, plan=plan, key=jr.key(0), batch_size=size.images, progress=False)
        return time.perf_counter() - start

    first = draw()
    seconds = [draw() for _ in range(size.rounds)]
    return {
        "devices": len(jax.devices()),
        "seconds_per_sample": float(np.median(seconds)) / size.images,
        "first_call_seconds": first,
        "megabytes_after_import": before / 1e3,
        "megabytes_at_most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def ladder_of(name: str) -> Ladder:
    """The ladder of a size of the study."""
    return tiny_ladder(3) if name == "smoke" else load_ladder()


def study(name: str, counts: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    """All parts, with a separate process for each of the `counts` of devices."""
    ladder, size = ladder_of(name), SIZES[name]
    found: dict[str, Any] = {"devices": [devices(count, name) for count in counts]}
    found |= times(ladder, size)
    cheap, y0 = random_features(4, 128), noise(ladder, size.batch)
    found["loop"] = [
        loop("random features, 4 levels", *cheap, size.rounds),
        loop("networks", ladder.term(), ladder.config.process.grid(size.steps[-1]), y0, size.rounds),
    ]
    # These are last because they clear the compilation cache.
    found["memory"], found["compile"] = memory(ladder, size), compilation(ladder, size)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--devices", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    name = arguments.size
    if arguments.devices is not None:
        print(json.dumps(on_these_devices(ladder_of(name), SIZES[name])))
        return
    found = study(name)
    print(report(found))
    if name != "smoke":
        save_figure(draw_figure(found), RESULTS / f"scaling_{name}.png")
        print("written:", write_results(f"scaling_{name}", found))


if __name__ == "__main__":
    main()
