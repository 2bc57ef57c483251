"""The planner's constants: predicted errors of plans with half and twice the value of each.

Run `python benchmarks/constants.py` (about six minutes on two cores; it reads the shipped calibrations and evaluates no
network); `--smoke` is a test with one constant and one budget. Prints a table and writes
`benchmarks/results/constants.json`.

Each constant is set to half and to twice its value, and plans with midpoint coins are made for all shipped calibrations
and some budgets. The table has the predicted error over that with the value of the library: its geometric mean over
plans, and the smallest and largest ratio. A ratio near 1 means that the value does not matter; ratios above 1 in both
columns mean that it is a good choice. Constants that only decide on advice are not included: their sources are in
`prediction.py` and in comments beside them.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from _curves import markdown
from _harness import write_results

from mlem_jax import Calibration, SystematicCoins
from mlem_jax._calibration import allocation, candidates, trials
from mlem_jax.diffusion import load_ladder

MIDPOINT = SystematicCoins(offset=0.5)
BUDGETS = (4.0, 12.0)
OF_ALLOCATION = ("_LEAST_MARGINAL_COST", "_LEAST_SHAPE", "_ROUNDS", "_WIDTH", "FEW_FIRINGS")


class Constant(NamedTuple):
    """A constant of a module, and its values at half and twice."""

    module: ModuleType
    name: str
    half: Any
    twice: Any


def scaled(module: ModuleType, name: str) -> Constant:
    """A number; a whole one stays whole."""
    value = getattr(module, name)
    half = max(1, value // 2) if isinstance(value, int) else value / 2
    return Constant(module, name, half, 2 * value)


def all_constants() -> list[Constant]:
    """The constants that change plans. The gain that a refinement needs is 1 - 0.98, and its factors are powers of
    2."""
    gain, factors = 1 - candidates._WORTHWHILE, np.array(candidates._FACTORS)
    return [
        *(
            scaled(allocation, name)
            for name in ("_LEAST_MARGINAL_COST", "_LEAST_SHAPE", "_ROUNDS", "_WIDTH", "FEW_FIRINGS")
        ),
        *(scaled(candidates, name) for name in ("_REFINED", "FEW_SEEDS", "MANY_SEEDS")),
        Constant(candidates, "_WORTHWHILE", 1 - gain / 2, 1 - 2 * gain),
        Constant(candidates, "_FACTORS", tuple(factors**0.5), tuple(factors**2)),
        scaled(trials, "_LEAST_NONLINEAR"),
    ]


@contextmanager
def changed(constant: Constant, value: Any) -> Iterator[None]:
    """Sets a constant, and restores it afterwards."""
    before = getattr(constant.module, constant.name)
    setattr(constant.module, constant.name, value)
    try:
        yield
    finally:
        setattr(constant.module, constant.name, before)


def errors(calibrations: dict[str, Calibration], budgets: tuple[float, ...]) -> np.ndarray:
    """The predicted errors of all plans."""
    plans = [c.plan(budget=budget, coins=MIDPOINT) for c in calibrations.values() for budget in budgets]
    return np.array([plan.error for plan in plans])


def study(
    constants: list[Constant], calibrations: dict[str, Calibration], budgets: tuple[float, ...]
) -> list[dict]:
    """A row for each constant and value."""
    base, rows = errors(calibrations, budgets), []
    for constant in constants:
        for kind in ("half", "twice"):
            value = getattr(constant, kind)
            with changed(constant, value):
                ratios = errors(calibrations, budgets) / base
            rows.append(
                {
                    "constant": f"{constant.module.__name__.split('.')[-1]}.{constant.name}",
                    "value": getattr(constant.module, constant.name),
                    "changed_to": kind,
                    "mean_ratio": float(np.exp(np.mean(np.log(ratios)))),
                    "least_ratio": float(ratios.min()),
                    "largest_ratio": float(ratios.max()),
                }
            )
            print(rows[-1], flush=True)
    return rows


def report(rows: list[dict]) -> str:
    """One line for each constant."""

    def shown(row: dict) -> str:
        return f"{row['mean_ratio']:.3f} ({row['least_ratio']:.3f} to {row['largest_ratio']:.3f})"

    pairs = zip(rows[::2], rows[1::2], strict=True)
    lines = [[half["constant"], f"{half['value']}", shown(half), shown(twice)] for half, twice in pairs]
    return markdown(["constant", "value", "error at half of it, over error", "at twice of it"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one constant and one budget; writes nothing")
    smoke = parser.parse_args().smoke
    ladder = load_ladder()
    kinds = ("ode",) if smoke else tuple(ladder.calibrations)
    calibrations = {kind: ladder.calibrations[kind] for kind in kinds}
    budgets = BUDGETS[:1] if smoke else BUDGETS
    rows = study(all_constants()[: 1 if smoke else None], calibrations, budgets)
    print(report(rows))
    if not smoke:
        print("written:", write_results("constants", {"budgets": budgets, "rows": rows}))


if __name__ == "__main__":
    main()
