"""The overhead of the solver: which fraction of the saved evaluations are saved seconds?

Run `python benchmarks/overhead.py` (about two minutes on two cores, nothing else running); writes
`benchmarks/results/overhead.json`. Every ratio is a median over rounds of a ratio within one round;
compilation is left out.

1. realised: seconds of an ML-EM solve of the shipped UNets (jit, vmap over trajectories), compared with its numbers of
   evaluations times the measured seconds of one evaluation of each level.
2. p_is_one: MLEM that evaluates the finest level in every step, compared with diffrax.Euler.
3. brownian: GridBrownianPath and VirtualBrownianTree against UnsafeBrownianPath, per step.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from _harness import interleaved_seconds, median_ratio, write_results

import mlem_jax as ml
from mlem_jax.diffusion import load_ladder

ROUNDS = 15
EVALUATIONS = 20


@eqx.filter_jit
def evaluate(level, y0):
    """Several evaluations of a level on a batch, one after the other, in one compiled program."""

    def body(y, _):
        return y - 0.01 * jax.vmap(lambda y: level(jnp.asarray(1.0), y, None))(y), None

    return jax.lax.scan(body, y0, None, length=EVALUATIONS)[0]


def realised(batch: int, budget: float) -> dict:
    """The promised seconds, from the numbers of evaluations, over the measured ones."""
    ladder = load_ladder()
    process = ladder.config.process
    plan = ladder.calibration().plan(budget=budget, levels=tuple(range(len(ladder.networks))))
    ts, term, solver = plan.grid, plan.terms(ladder.term()), plan.solver(key=jr.key(0))
    y0 = process.s_max * jr.normal(jr.key(1), (batch, *ladder.config.shape))

    @eqx.filter_jit
    def solve(term, solver, y0):
        def one(y0):
            return diffrax.diffeqsolve(
                term,
                solver,
                ts[0],
                ts[-1],
                None,
                y0,
                stepsize_controller=diffrax.StepTo(ts),
                saveat=diffrax.SaveAt(t1=True, solver_state=True),
            )

        return jax.vmap(one)(y0)

    counts = ml.evaluation_report(solve(term, solver, y0).solver_state).evaluations
    calls = [lambda: solve(term, solver, y0).ys]
    calls += [lambda level=level: evaluate(level, y0) for level in term.levels]
    whole, *levels = interleaved_seconds(calls, repeats=ROUNDS)
    promised = [
        sum(int(n) * level[i] / EVALUATIONS for n, level in zip(counts, levels, strict=True))
        for i in range(ROUNDS)
    ]
    return {
        "batch": batch,
        "evaluations": [int(n) for n in counts],
        "promised_over_taken": median_ratio(promised, whole),
        "solve_seconds": sorted(whole)[ROUNDS // 2],
        "evaluation_seconds": [sorted(level)[ROUNDS // 2] / EVALUATIONS for level in levels],
    }


def p_is_one() -> dict:
    """MLEM with p = 1 over diffrax.Euler, for drifts from nearly free to a small UNet."""
    ladder = load_ladder()
    unet = ladder.term().levels[1]
    weight = jr.normal(jr.key(0), (512, 512)) / 512**0.5

    def dense(t, y, args):
        return jnp.tanh(y @ weight) - y

    problems = {
        "y -> -y, 4 numbers": (lambda t, y, args: -y, jnp.ones(4), 1000),
        "dense layer, 16 x 512": (dense, jnp.ones((16, 512)), 1000),
        "second UNet level, 16 images": (unet, jnp.ones((16, *ladder.config.shape)), 100),
    }
    ratios = {}
    for name, (level, y0, steps) in problems.items():
        term = ml.MultilevelTerm(level, level)

        @eqx.filter_jit
        def solve(solver, y0, term=term, steps=steps):
            return diffrax.diffeqsolve(term, solver, 1.0, 2.0, 1.0 / steps, y0).ys

        calls = [
            lambda solve=solve, y0=y0: solve(ml.MLEM([1.0, 1.0], key=jr.key(0)), y0),
            lambda solve=solve, y0=y0: solve(diffrax.Euler(), y0),
        ]
        ours, euler = interleaved_seconds(calls, repeats=2 * ROUNDS)
        ratios[name] = {
            "mlem_over_euler": median_ratio(ours, euler),
            "euler_microseconds_per_step": 1e6 * sorted(euler)[ROUNDS] / steps,
        }
    return ratios


def brownian() -> dict:
    """Seconds of a whole additive-noise solve with each path, over that with UnsafeBrownianPath."""
    steps = 1000
    ts = jnp.linspace(0.0, 1.0, steps + 1)
    ratios = {}
    for shape in ((16,), (16, 784)):
        paths = {
            "UnsafeBrownianPath": diffrax.UnsafeBrownianPath(shape, key=jr.key(0)),
            "GridBrownianPath": ml.GridBrownianPath(ts, shape, key=jr.key(0)),
            "VirtualBrownianTree": diffrax.VirtualBrownianTree(
                0.0, 1.0, tol=1 / (2 * steps), shape=shape, key=jr.key(0)
            ),
        }

        @eqx.filter_jit
        def solve(path, y0):
            noise = diffrax.ControlTerm(lambda t, y, args: lx.DiagonalLinearOperator(jnp.ones_like(y)), path)
            terms = diffrax.MultiTerm(diffrax.ODETerm(lambda t, y, args: -y), noise)
            return diffrax.diffeqsolve(
                terms,
                diffrax.Euler(),
                ts[0],
                ts[-1],
                None,
                y0,
                stepsize_controller=diffrax.StepTo(ts),
                # The one adjoint that UnsafeBrownianPath accepts; the same for all.
                adjoint=diffrax.ForwardMode(),
            ).ys

        calls = [lambda path=path, shape=shape: solve(path, jnp.zeros(shape)) for path in paths.values()]
        unsafe, *others = interleaved_seconds(calls, repeats=ROUNDS)
        ratios[str(shape)] = {"UnsafeBrownianPath_microseconds_per_step": 1e6 * sorted(unsafe)[7] / steps}
        for name, seconds in zip(list(paths)[1:], others, strict=True):
            ratios[str(shape)][f"{name}_over_unsafe"] = median_ratio(seconds, unsafe)
    return ratios


def main() -> None:
    results = {
        "realised": [realised(batch, budget=12.0) for batch in (16, 64)],
        "p_is_one": p_is_one(),
        "brownian": brownian(),
    }
    for row in results["realised"]:
        print(f"batch {row['batch']}: {row['promised_over_taken']:.0%} of the promised speed realised")
    for name, row in results["p_is_one"].items():
        print(f"p = 1, {name}: {row['mlem_over_euler']:.2f} x Euler")
    for shape, row in results["brownian"].items():
        print(f"Brownian path of shape {shape}: {row}")
    print("written:", write_results("overhead", results))


if __name__ == "__main__":
    main()
