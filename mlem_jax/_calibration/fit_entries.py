"""The entries of a catalogue of fitted steps: coefficients from all pilots, and the errors of held-out pilots."""

import dataclasses
from collections.abc import Callable

import numpy as np

from .._solver import MultistepCoefficients
from .fit_law import Law
from .fit_pilots import FitPilots
from .fit_refine import refine
from .fit_rollout import coefficients_of, Memory, roll_out, Schedule
from .fit_search import GROUPS, MEMORY, SEARCHED, worth_fitting
from .fit_step import everyone, left_out
from .kept_parts import KeptParts
from .searcher import Found

# A longer memory than in the search is used if held-out pilots prefer it.
_LONG_MEMORY = Memory(drifts=5, held=5)
# Steps of the finest level alone are what all others are compared with, by their error. They are fitted for the
# distribution only if this increases the error of held-out pilots by at most this factor. On the shipped ladder it does
# by 4 to 15%, and for several levels by -2 to 2%.
_TOLERATED = 1.05


def catalogue_entries(
    pilots: FitPilots,
    found: list[Found],
    distribution: float,
    kept: KeptParts,
    advance: Callable[[int, str], None],
) -> list[tuple[tuple[int, ...], MultistepCoefficients, np.ndarray, bool]]:
    """The entries of the catalogue: levels, coefficients, errors of held-out pilots, and whether they are fitted."""
    # Where there are enough pilots, errors are those of pilots that were not used in the search.
    unused = slice(SEARCHED if pilots.count >= 2 * SEARCHED else 0, None)
    names = [field.name for field in dataclasses.fields(MultistepCoefficients)]
    entries = []
    for number, one in enumerate(worth_fitting(found)):
        name = f"entry-{number + 1}"
        inside = kept.within(name)

        def final(one: Found = one, parts: KeptParts = inside) -> tuple[np.ndarray, ...]:
            table, errors, better = _final(
                pilots, one.schedule, distribution, parts, lambda what: advance(0, what)
            )
            return (*(getattr(table, name) for name in names), errors, np.array(better))

        *numbers, errors, better = kept.arrays(name, final)
        table = MultistepCoefficients(**dict(zip(names, numbers, strict=True)))
        entries.append((one.schedule.levels, table, errors[unused], bool(better)))
        advance(1, f"all pilots, cost {one.cost:.1f}")
    return entries


def _final(
    pilots: FitPilots,
    schedule: Schedule,
    distribution: float,
    kept: KeptParts,
    report: Callable[[str], None],
) -> tuple[MultistepCoefficients, np.ndarray, bool]:
    """The coefficients of a schedule from all pilots, the errors of held-out pilots, and whether these errors are
    smaller than with the classical coefficients.

    Each group of pilots is held out of one fit. The coefficients are the mean of these fits, in which all pilots have
    the same weight."""
    groups = left_out(pilots.count, GROUPS)
    tried = [roll_out(pilots, schedule, memory, groups) for memory in (MEMORY, _LONG_MEMORY)]
    held_out = refine(pilots, min(tried, key=lambda rollout: rollout.typical_error), report, kept)
    classical = roll_out(pilots, schedule, MEMORY, everyone(pilots.count), classical=True)
    if distribution:
        # Held-out distances to the pilots' own references do not rate distributions, for which a long memory is worse.
        law = Law.of(pilots.path[-1], distribution)
        also = roll_out(pilots, schedule, MEMORY, groups, law=law)
        errors = (one.typical_error for one in (also, held_out, classical))
        if _is_kept(*errors, alone=schedule.levels == (len(pilots.costs) - 1,)):
            held_out = also
    better = held_out.typical_error < classical.typical_error
    chosen = held_out if better else classical
    return coefficients_of(chosen, pilots.ts), chosen.errors, better


def _is_kept(distribution: float, trajectories: float, classical: float, *, alone: bool) -> bool:
    """Whether a fit for the distribution is kept, from the errors of held-out pilots with it, with the fit to the
    trajectories, and with the classical coefficients; `alone`, for steps of the finest level alone."""
    tolerated = _TOLERATED * trajectories if alone else np.inf
    return distribution < min(tolerated, classical)
