"""Steps fitted for the study of quality: of one network, of two in turn, with grids searched for the path or for the
distribution. Each fit is kept in a folder."""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

import mlem_jax as ml
from mlem_jax._calibration.fit_law import Law
from mlem_jax._calibration.fit_pilots import FitPilots
from mlem_jax._calibration.fit_refine import refine
from mlem_jax._calibration.fit_rollout import coefficients_of, Memory, roll_out, Schedule
from mlem_jax._calibration.fit_step import left_out
from mlem_jax._calibration.search_steps import single_level
from mlem_jax._calibration.searcher import Searcher
from mlem_jax._io import write_safely
from mlem_jax._term import FixedTerms
from mlem_jax.diffusion import Ladder

TIMES, GROUPS, SEARCHED = 128, 4, 32
# The distance of the distributions, the places of the steps, and the share of the distribution in the fit.
Trial = tuple[float, tuple[int, ...], float]
_TABLE = ("ts", "drifts", "increments", "evaluated", "corrections", "repeats")
# Karras' exponent, of a grid that is tried for the distribution.
_EXPONENT = 7.0
_JUDGED_PILOTS = 32
# Of the distribution in the objective of a fit, where it counts at all.
SHARE = 0.9
# Switching: the small network's steps, and where they begin and end, in noise levels.
_SMALL_STEPS, _BEGIN, _END = 10, (35.0, 12.0), (1.2, 0.6, 0.3)
# How far the distribution of some steps of the finest level is off, in logarithms.
Judge = Callable[[ml.MultistepCoefficients], float]
FAMILIES = ("large, small, large", "large, then small", "small, then large")


class Between(eqx.Module):
    """The small level between two times, the large one before and after. A level of its own."""

    small: Callable
    large: Callable
    begin: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    end: Float[Array, ""] = eqx.field(converter=jnp.asarray)

    def __call__(self, t: Any, y: Array, args: Any) -> Array:
        # Plain functions, because lax.cond wants to hash its branches and modules have no hash.
        branches = [lambda f=f: f(t, y, args) for f in (self.small, self.large)]
        return jax.lax.cond((t <= self.begin) & (t > self.end), *branches)


class Switch(NamedTuple):
    """Places of the steps among the pilots' times, the small level, and between which times it runs."""

    places: tuple[int, ...]
    small: int
    begin: float
    end: float

    @property
    def schedule(self) -> Schedule:
        """Of the switched level alone."""
        return Schedule(self.places, 0, ((),) * (len(self.places) - 1))


class Fits:
    """Makes fitted steps, or reads them where they have been made.

    `pilots` trajectories of the probability flow, the same as `fitted.py` has.
    """

    def __init__(self, ladder: Ladder, folder: Path, *, pilots: int):
        self.ladder, self.folder, self.count = ladder, folder, pilots
        self.term = ladder.term()
        flops = np.array(ladder.flops(), float)
        self.costs = flops / flops[-1]
        self.finest = len(flops) - 1
        self.ts = np.asarray(ladder.config.process.grid(TIMES), float)
        self._pilots: FitPilots | None = None

    @property
    def pilots(self) -> FitPilots:
        if self._pilots is None:
            process = self.ladder.config.process
            y0s = process.s_max * jr.normal(jr.key(5), (self.count, *self.ladder.config.shape))
            self._pilots = self._with(None, y0s)
        return self._pilots

    def _with(self, switched: Between | None, y0s: Array | None) -> FitPilots:
        """Pilots on the ladder's levels, or with the first level replaced by a switched one: the finest level, whose
        path they are to follow, is the same."""
        levels = self.term.levels if switched is None else (switched, self.term.levels[-1])
        make = FixedTerms(ml.MultilevelTerm(*levels))
        if y0s is None:
            part = self.pilots.part(self.count)
            part._given = eqx.tree_at(lambda g: g.make_terms, part._given, make)
            return part
        return FitPilots(
            make,
            self.ts,
            1,
            y0s,
            args=None,
            labels=None,
            key=jr.key(0),
            costs=self.costs,
            time_variable="log",
            batch_size=32,
        )

    def kept(self, name: str, make: Callable[[], ml.MultistepCoefficients]) -> ml.MultistepCoefficients:
        """Those of an earlier run, or new ones."""
        digest = hashlib.sha256(f"{name}|{self.count}".encode()).hexdigest()[:12]
        path = self.folder / f"{digest}.npz"
        if not path.exists():
            table = make()
            self.folder.mkdir(parents=True, exist_ok=True)
            arrays: dict[str, Any] = {field: np.asarray(getattr(table, field)) for field in _TABLE}
            write_safely(path, lambda file: np.savez(file, **arrays))
        with np.load(path) as found:
            return ml.MultistepCoefficients(**dict(found))

    def nearest(self, ts: Sequence[float] | np.ndarray) -> tuple[int, ...]:
        """Places of times among the pilots' times, in the logarithm."""
        apart = np.abs(np.log(self.ts)[None, :] - np.log(np.asarray(ts, float))[:, None])
        return tuple(np.unique(apart.argmin(axis=1)).tolist())

    def coefficients(
        self, schedule: Schedule, pilots: FitPilots | None = None, share: float = 0.0, *, final: bool = True
    ) -> ml.MultistepCoefficients:
        """As `fit_steps` fits them for a share of the distribution in the objective."""
        pilots = self.pilots if pilots is None else pilots
        law = Law.of(pilots.path[-1], share) if share else None
        held_out = roll_out(pilots, schedule, Memory(), left_out(pilots.count, GROUPS), law=law)
        if law is None and final:
            held_out = refine(pilots, held_out, lambda what: None)
        return coefficients_of(held_out, pilots.ts)

    def alone(self, level: int, steps: int) -> ml.MultistepCoefficients:
        """One level, its grid searched for the path."""

        def make() -> ml.MultistepCoefficients:
            few = self.pilots.part(min(SEARCHED, self.count))
            searcher = Searcher(few, Memory(), left_out(few.count, GROUPS))
            (found,) = single_level(searcher, level, [steps])
            return self.coefficients(found.schedule)

        return self.kept(f"level {level + 1} alone, {steps} steps", make)

    def judged(self, steps: int, path: np.ndarray, judge: Judge) -> ml.MultistepCoefficients:
        """The finest level alone, for the distribution: the better of the grid for the path and of Karras' grid, with
        the better of both fits."""

        def tried(places: tuple[int, ...], share: float) -> Trial:
            schedule = Schedule(places, self.finest, ((),) * (len(places) - 1))
            table = self.coefficients(
                schedule, self.pilots.part(min(_JUDGED_PILOTS, self.count)), share, final=False
            )
            return judge(table), places, share

        def make() -> ml.MultistepCoefficients:
            process = self.ladder.config.process
            low, high = process.s_min, process.s_max
            power = 1 / _EXPONENT
            karras = np.linspace(high**power, low**power, steps + 1) ** _EXPONENT
            grids = dict.fromkeys(self.nearest(ts) for ts in (path, karras))
            trials = [tried(places, SHARE) for places in grids if len(places) == steps + 1]
            best = min(trials, key=lambda trial: trial[0])
            best = min(best, tried(best[1], 0.0), key=lambda trial: trial[0])
            return self.coefficients(Schedule(best[1], self.finest, ((),) * steps), share=best[2])

        return self.kept(f"finest alone, {steps} steps, for the distribution", make)

    def for_the_path(
        self, levels: tuple[int, ...], table: ml.MultistepCoefficients
    ) -> ml.MultistepCoefficients:
        """Other coefficients of a catalogue's steps: those of `fit_steps` without a share of the distribution."""
        places = self.nearest(np.asarray(table.ts))
        evaluated = [tuple(levels[1 + k] for k in np.flatnonzero(row)) for row in np.asarray(table.evaluated)]
        schedule = Schedule(places, levels[0], tuple(evaluated), bool(np.any(table.repeats)))
        return self.kept(f"{schedule}, for the path", lambda: self.coefficients(schedule))

    def switches(self, family: str, large: int) -> list[Switch]:
        """Ways to spend some evaluations of the finest level before and after a small one's steps."""
        process = self.ladder.config.process
        low, high = process.s_min, process.s_max
        found = []
        for small, begin, end in itertools.product(range(1, self.finest), _BEGIN, _END):
            for early in range(large + 1):
                late = large - early
                if family != FAMILIES[0 if early and late else 1 if early else 2]:
                    continue
                first, last = self.ts[[*self.nearest([begin if early else high, end if late else low])]]
                ts = [
                    *np.geomspace(high, first, early + 1)[:-1],
                    *np.geomspace(first, last, _SMALL_STEPS + 1),
                    *np.geomspace(last, low, late + 1)[1:],
                ]
                found.append(Switch(self.nearest(ts), small, float(first), float(last)))
        return list(dict.fromkeys(found))

    def level_of(self, switch: Switch) -> Between:
        """Its level. The bounds are a little off the grid points, which are rounded in single precision."""
        return Between(
            self.term.levels[switch.small], self.term.levels[-1], 1.001 * switch.begin, 1.001 * switch.end
        )

    def switched(self, family: str, large: int) -> tuple[Switch, ml.MultistepCoefficients] | None:
        """The way whose steps, fitted as ours are, bring held-out pilots nearest to their path."""
        ways = self.switches(family, large)
        if not ways:
            return None
        name = f"{family}, {large} large"
        chosen = self.folder / f"{hashlib.sha256(f'{name}|{self.count}'.encode()).hexdigest()[:12]}_way.txt"
        if not chosen.exists():
            errors = []
            for way in ways:
                pilots = self._with(self.level_of(way), None).part(min(SEARCHED, self.count))
                errors.append(
                    roll_out(pilots, way.schedule, Memory(), left_out(pilots.count, GROUPS)).typical_error
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            chosen.write_text(str(int(np.argmin(errors))))
        way = ways[int(chosen.read_text())]

        def make() -> ml.MultistepCoefficients:
            return self.coefficients(way.schedule, self._with(self.level_of(way), None))

        return way, self.kept(name, make)
