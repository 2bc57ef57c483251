"""The overhead of `mlem_jax.diffusion.sample` beside its networks, and its scaling over processes.

Run `python benchmarks/sampling.py` (about two minutes on two cores, nothing else running; `--smoke` for the tests).
Writes `benchmarks/results/sampling.json`. Compilation is left out.

1. throughput: seconds of whole calls of `sample`, for four batches of 64 images of the shipped ladder with all four
   levels, against the evaluations in them times the measured seconds of one evaluation of each level; median over
   rounds of the ratio within one round.
2. processes: images a second of one process on one core, of two processes on one core each (`jax.distributed`, no
   exchange between them), and of one process on both cores; the best of several rounds each.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
from _harness import interleaved_seconds, median_ratio, write_results
from overhead import evaluate, EVALUATIONS

import mlem_jax as ml
from mlem_jax.diffusion import Ladder, load_ladder, sample

BATCH = 64
BUDGET = 12.0


def all_levels_plan(ladder: Ladder) -> ml.Plan:
    return ladder.calibration().plan(
        budget=BUDGET, coins=ml.SystematicCoins(offset=0.5), levels=tuple(range(len(ladder.networks)))
    )


def counted(ladder: Ladder, plan: ml.Plan) -> list[int]:
    """The evaluations of each level in one batch. With default coins they are the same in all batches."""
    solution = diffrax.diffeqsolve(
        plan.terms(ladder.term()),
        plan.solver(key=jr.key(0)),
        plan.ts[0],
        plan.ts[-1],
        None,
        jnp.zeros(ladder.config.shape),
        stepsize_controller=diffrax.StepTo(plan.grid),
        saveat=diffrax.SaveAt(t1=True, solver_state=True),
    )
    return [int(n) for n in ml.evaluation_report(solution.solver_state).evaluations]


def throughput(batches: int, rounds: int) -> dict[str, Any]:
    """The promised seconds, from the numbers of evaluations, over the measured ones."""
    ladder = load_ladder()
    plan = all_levels_plan(ladder)
    y0 = ladder.config.process.s_max * jr.normal(jr.key(1), (BATCH, *ladder.config.shape))
    counts = counted(ladder, plan)
    calls = [lambda: sample(ladder, n=batches * BATCH, plan=plan, key=jr.key(0), progress=False).images]
    calls += [lambda level=level: evaluate(level, y0) for level in ladder.term().levels]
    whole, *levels = interleaved_seconds(calls, repeats=rounds)
    promised = [
        batches * sum(n * level[i] / EVALUATIONS for n, level in zip(counts, levels, strict=True))
        for i in range(rounds)
    ]
    return {
        "images": batches * BATCH,
        "evaluations_per_batch": counts,
        "promised_over_taken": median_ratio(promised, whole),
        "images_per_second": batches * BATCH / sorted(whole)[rounds // 2],
    }


def work(index: int, processes: int, port: int, cores: str, images: int, rounds: int) -> None:
    """One process of the scaling table: prints the seconds of each round."""
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=processes, process_id=index)
    ladder = load_ladder()
    plan = all_levels_plan(ladder)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        sample(ladder, n=images, plan=plan, key=jr.key(0), progress=False)
        seconds.append(time.perf_counter() - start)
    # The first one compiles.
    print(json.dumps(seconds[1:]))


def images_per_second(cores: list[str], images: int, rounds: int) -> float:
    """With one process for each entry, on those cores."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = (str(len(cores)), str(port))
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--work", str(i), *common, mine, str(images), str(rounds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for i, mine in enumerate(cores)
    ]
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"A process of {len(cores)} failed; its message is above.")
    # A round ends with its slowest process.
    slowest = map(max, zip(*map(json.loads, outputs), strict=True))
    return images / min(slowest)


def scaling(images: int, rounds: int) -> list[dict[str, Any]]:
    """The table of processes."""
    first, second, *_ = [str(core) for core in sorted(os.sched_getaffinity(0))]
    settings = {
        "1 process, 1 core": [first],
        "2 processes, 1 core each": [first, second],
        "1 process, 2 cores": [f"{first},{second}"],
    }
    found = {name: images_per_second(cores, images, rounds) for name, cores in settings.items()}
    alone = found["1 process, 1 core"]
    return [
        {"setting": name, "images_per_second": speed, "over_one_core": speed / alone}
        for name, speed in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one small batch; writes nothing")
    parser.add_argument("--work", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        index, processes, port, cores, images, rounds = arguments.work
        work(int(index), int(processes), int(port), cores, int(images), int(rounds))
        return
    batches, rounds = (1, 1) if arguments.smoke else (4, 9)
    found = {"throughput": throughput(batches, rounds)}
    print(
        f"throughput: {100 * found['throughput']['promised_over_taken']:.0f}% of what the networks take alone"
    )
    if arguments.smoke:
        return
    table = scaling(8 * BATCH, 3)
    for row in table:
        print(f"{row['setting']:26s} {row['images_per_second']:6.1f} images/s  {row['over_one_core']:.2f}")
    print("written:", write_results("sampling", {**found, "processes": table}))


if __name__ == "__main__":
    main()
