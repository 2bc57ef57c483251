"""Study 12: what one evaluation of each level takes on an accelerator, for several batch sizes.

    python benchmarks/gpu.py           # a minute or two per batch size, nearly all of it compilation
    python benchmarks/gpu.py --smoke   # tiny networks, for any machine; writes nothing

The networks are those of `faces_large.toml`, with random parameters, which make no difference. A figure is the fastest
of 5 rounds of 20 calls, without compilation; the calls of a round are queued and waited for together. Those of the
smallest networks are bounds from above: Python dispatches every call here, about 0.3 ms, which a compiled solve does
not need. Costs in FLOPs assume that a network of half the FLOPs takes half the time; the last two columns are the cost
of a level in evaluations of the finest one, by time and by FLOPs. Writes `benchmarks/results/gpu.json` and `gpu.csv`
after every figure, because accelerators may be lent for minutes.

`plan(..., in_seconds=True)` of a calibration that was made on a machine uses that machine's times. For training and all
other measurements see `faces.py`, whose `--ladder` takes a ladder that was trained on an accelerator.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from _harness import write_results, write_table
from faces import tiny_config

from mlem_jax.diffusion import Config, MixedPrecision, read_config
from mlem_jax.diffusion._ladder import count_flops

CONFIG = Path(__file__).with_name("faces_large.toml")
BATCHES, PRECISIONS = (32, 256, 1024), ("float32", "bfloat16")
ROUNDS, CALLS = 5, 20


@eqx.filter_jit
def _evaluate(network: Any, x: jax.Array, noise_level: jax.Array) -> jax.Array:
    return network(x, noise_level)


def milliseconds(network: Any, batch: int, *, rounds: int = ROUNDS, calls: int = CALLS) -> float:
    """Of one evaluation on a batch."""
    x, noise_level = jnp.ones((batch, *network.shape)), jnp.zeros(batch)
    _evaluate(network, x, noise_level).block_until_ready()
    fastest = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        out = x
        for _ in range(calls):
            out = _evaluate(network, x, noise_level)
        out.block_until_ready()
        fastest = min(fastest, (time.perf_counter() - start) / calls)
    return 1000 * fastest


def measured(
    config: Config, batches: Sequence[int], precisions: Sequence[str], **amounts: int
) -> Iterator[dict[str, Any]]:
    """A row for each precision, batch size and level, the finest level first."""
    networks = config.networks()
    flops = [count_flops(network) for network in networks]
    for precision in precisions:
        for batch in batches:
            finest = None
            for k, network in reversed(list(enumerate(networks))):
                mixed = network if precision == "float32" else MixedPrecision(network, precision)
                found = milliseconds(mixed, batch, **amounts)
                finest = found if finest is None else finest
                yield {
                    "precision": precision,
                    "batch": batch,
                    "level": k + 1,
                    "mflop": flops[k] / 1e6,
                    "milliseconds": found,
                    "tflop_per_second": batch * flops[k] / found / 1e9,
                    "cost_in_flops": flops[k] / flops[-1],
                    "cost_in_seconds": found / finest,
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny networks; writes no results")
    smoke = parser.parse_args().smoke
    if smoke:
        rows = measured(tiny_config(), (2,), PRECISIONS, rounds=1, calls=2)
    else:
        rows = measured(read_config(CONFIG), BATCHES, PRECISIONS)
    kept: list[dict[str, Any]] = []
    for row in rows:
        kept.append(row)
        print(
            f"{row['precision']:8s} batch {row['batch']:4d}  level {row['level']} ({row['mflop']:7.1f} MFLOP)  "
            f"{row['milliseconds']:7.3f} ms  {row['tflop_per_second']:6.1f} TFLOP/s  cost {row['cost_in_seconds']:.3f} "
            f"in seconds, {row['cost_in_flops']:.4f} in FLOPs",
            flush=True,
        )
        if not smoke:
            write_results("gpu", {"rows": kept})
            write_table("gpu", kept)


if __name__ == "__main__":
    main()
