"""Flags with which XLA optimises less and compiles faster: most of the time of tests is compilation."""

import os

import jax

# Optimisations are left out: those of LLVM, and fusions by MLIR, without which a training step compiles in a quarter of
# the time.
_FAST = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):  # XLA ends the process over a flag that it does not know.
    _FAST += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_enable_concurrency_optimized_scheduler=false"]
FLAGS = " ".join([os.environ.get("XLA_FLAGS", ""), *_FAST]).strip()
