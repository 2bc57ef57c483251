"""A ladder of trained levels: built, saved, loaded, and turned into a diffrax term."""

import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..._calibration.calibrate import calibrate
from ..._calibration.calibration import Calibration
from ..._calibration.plan import Plan
from ..._calibration.planning import UnreachableError
from ..._io import full_disk_explained
from ..._solver.method import AbstractMethod, AdamsBashforth, EulerMaruyama
from ..._term import MultilevelTerm
from .._network.layers import AbstractNetwork
from .._predictor.adapter import NoisePredictor
from .._predictor.drift import NoisyTerms, ProbabilityFlow, ReverseDrift
from .._predictor.guidance import Guided
from .config import Config
from .toml import config_text, read_saved_config

_SHIPPED = Path(__file__).parents[1] / "fashion_mnist"
# In which a ladder is calibrated. A diffusion model's drift is closer to a straight line in log s than in s.
METHODS = (EulerMaruyama(), AdamsBashforth("log"))
# A denoiser's samples contain of its start noise about their own size over s_max: half a per cent for s_max = 80.
_NOISE_LEFT = 0.05
_CONFIG, _CARD = "ladder.toml", "card.json"
# One scale for all levels, or one for each.
Guidance = float | int | Sequence[float | int]


@dataclasses.dataclass(frozen=True, eq=False)
class Ladder:
    """Trained networks of growing size, cheapest first.

    - `networks`: the levels' networks.
    - `config`: the description they were built from.
    - `card`: what was measured after training (losses, FLOPs and parameters of each level).
    - `calibrations`: of the probability flow (`"ode"`) and of the reverse SDE (`"sde"`) for
        [`mlem_jax.EulerMaruyama`][], and perhaps for [`mlem_jax.AdamsBashforth`][] (`"ode_2"`, `"sde_2"`), without
        guidance.

    Networks of a ladder with classes take a label, which comes from the `args` of the solve. `guidance`, a scale or
    one for each level, makes each a [`mlem_jax.diffusion.Guided`][] one.
    """

    networks: tuple[AbstractNetwork, ...]
    config: Config
    card: dict[str, Any]
    calibrations: dict[str, Calibration]

    def __repr__(self) -> str:
        config = self.config
        size = " x ".join(map(str, config.shape))
        labels = "" if config.classes is None else f", {config.classes} classes"
        lines = [f"Ladder {config.name!r} for images of {size}{labels}, {config.prediction}-prediction"]
        for k, network in enumerate(self.networks):
            lines.append(
                f"  level {k + 1}: {type(network).__name__}, {count_parameters(network):,} parameters"
            )
        lines.append(f"  calibrations: {', '.join(sorted(self.calibrations)) or 'none'}")
        return "\n".join(lines)

    def term(self, *, sde: bool = False, guidance: Guidance | None = None) -> MultilevelTerm:
        """The multilevel drift of sampling: the probability flow, or with `sde=True` the reverse SDE's
        (add [`mlem_jax.diffusion.reverse_diffusion`][] for the noise). Costs are FLOPs per image.

        Raises `ValueError` for guidance without classes or with another number of scales than levels."""
        levels = self._drifts(sde, guidance)
        costs = [count_flops(network, guided=guidance is not None) for network in self.networks]
        return MultilevelTerm(*levels, costs=costs)

    def _drifts(
        self, sde: bool, guidance: Guidance | None = None
    ) -> tuple[ProbabilityFlow | ReverseDrift, ...]:
        drift = ReverseDrift if sde else ProbabilityFlow
        return tuple(map(drift, self.predictors(guidance=guidance)))

    def predictors(self, *, guidance: Guidance | None = None) -> tuple[NoisePredictor, ...]:
        """The networks as predictions of the noise. Raises as `term` does."""
        if guidance is None:
            return tuple(map(self.config.predictor, self.networks))
        classes = self.config.classes
        if classes is None:
            raise ValueError(
                f"guidance={guidance} needs networks that take a label, and this ladder was trained without "
                "classes. Leave it out, or train a ladder with classes = ... in its file."
            )
        single = isinstance(guidance, float | int)
        scales = [guidance] * len(self.networks) if single else list(guidance)
        if len(scales) != len(self.networks):
            raise ValueError(
                f"guidance={guidance} for {len(self.networks)} levels; one scale for all, or one for each, cheapest "
                "level first, is expected."
            )
        return tuple(
            self.config.predictor(Guided(network, float(scale), classes))
            for network, scale in zip(self.networks, scales, strict=True)
        )

    def calibration(
        self,
        *,
        sde: bool = False,
        method: AbstractMethod = METHODS[0],  # noqa: B008 (immutable)
    ) -> Calibration:
        """What was measured for a method, without guidance. Raises `ValueError` if the ladder was saved without it."""
        kind = _kind(sde, method)
        if kind not in self.calibrations:
            raise ValueError(
                f"This ladder has no calibration {kind!r}, only {sorted(self.calibrations)}. Measure it with "
                f"calibrate_ladder(ladder, sde={sde}, method=mlem_jax.{method})."
            )
        return self.calibrations[kind]

    def plan(
        self,
        *,
        budget: float | int | None = None,
        error: float | int | None = None,
        sde: bool = False,
        **settings: Any,
    ) -> Plan:
        """The better of the plans of all methods that the ladder has calibrations for: the one of smaller
        predicted error, or for a wanted `error` the cheaper one. Arguments and errors as for
        [`mlem_jax.make_plan`][]."""
        there = [method for method in METHODS if _kind(sde, method) in self.calibrations] or METHODS[:1]
        found: list[Plan] = []
        refusals: list[ValueError] = []
        for method in there:
            calibration = self.calibration(sde=sde, method=method)
            calibration.require(self._drifts(sde), jnp.zeros(self.config.shape))
            try:
                found.append(calibration.plan(budget=budget, error=error, **settings))
            except ValueError as refusal:
                refusals.append(refusal)
        if not found:
            unreachable = [refusal for refusal in refusals if isinstance(refusal, UnreachableError)]
            raise min(unreachable, key=lambda refusal: refusal.least, default=refusals[0])
        return min(found, key=lambda plan: plan.error if error is None else plan.cost)

    def flops(self) -> tuple[float, ...]:
        """FLOPs of one evaluation of each level on one image, as XLA counts them."""
        return tuple(count_flops(network) for network in self.networks)


def calibrate_ladder(
    ladder: Ladder,
    *,
    sde: bool = False,
    method: AbstractMethod = METHODS[0],  # noqa: B008 (immutable)
    steps: int | None = None,
    pilots: int = 32,
    guidance: Guidance | None = None,
    progress: bool = True,
) -> Calibration:
    """Calibrates the probability flow, or the reverse SDE, on `pilots` images of fresh noise and Karras'
    grid of `steps` steps (by default 128, for the SDE 256).

    With classes each pilot has a label of its own, drawn uniformly; `guidance` as for `Ladder.term`."""
    process, shape, classes = ladder.config.process, ladder.config.shape, ladder.config.classes
    ts = process.grid(steps or (256 if sde else 128))
    key = jr.key(ladder.config.training.seed + 2)
    keys = jr.split(key)
    y0s = process.s_max * jr.normal(keys[0], (pilots, *shape))
    # The next key after these two.
    labels = None if classes is None else jr.randint(jr.fold_in(key, 2), (pilots,), 0, classes)
    term = ladder.term(sde=sde, guidance=guidance)
    terms = NoisyTerms(term, ts, shape) if sde else term
    found = calibrate(terms, ts, y0s, labels=labels, key=keys[1], method=method, progress=progress)
    share = found.measurements.start_share
    if share is None or abs(share) < _NOISE_LEFT:
        return found
    remark = (
        f"The finest level does not denoise: {share:.0%} of the noise that sampling starts from is left at its end; "
        "errors are distances to that end. Train it longer, or give it a shape that can represent an image."
    )
    return dataclasses.replace(found, remarks=(remark,))


def count_flops(network: AbstractNetwork, *, guided: bool = False) -> float:
    """FLOPs of one evaluation on one image, as XLA counts them before it optimises; with `guided`, of both its
    branches. Of the network only the shapes matter, and they are enough."""
    struct = jax.ShapeDtypeStruct((1, *network.shape), jnp.float32)
    level = jax.ShapeDtypeStruct((), jnp.float32)
    label = None if network.classes is None else jax.ShapeDtypeStruct((), jnp.int32)
    params, static = eqx.partition(network, _has_shape)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)

    def call(params: Any, x: Any, noise_level: Any, label: Any) -> Any:
        evaluated = eqx.combine(params, static)
        if guided:
            evaluated = Guided(evaluated, 2.0, network.classes)
        return evaluated(x, noise_level, label)

    analysis = jax.jit(call).lower(shapes, struct, level, label).cost_analysis()
    assert analysis is not None
    return float(analysis["flops"])


def count_parameters(network: AbstractNetwork) -> int:
    """Number of trained parameters, of a network or of its shapes."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(eqx.filter(network, _has_shape)))


def level_sizes(config: Config) -> list[tuple[str, int, float]]:
    """Kind, parameters and FLOPs per image of each level, from the shapes alone: nothing is drawn."""
    networks = eqx.filter_eval_shape(config.networks)
    return [(type(n).__name__, count_parameters(n), count_flops(n)) for n in networks]


def _has_shape(x: Any) -> bool:
    return eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)


def save_ladder(directory: str | Path, ladder: Ladder) -> None:
    """Writes `ladder.toml`, `card.json`, one `level_k.eqx` (float16) per level and the calibrations.

    Everything is written beside the target and renamed into place. Raises `FileExistsError` rather than
    replace an existing directory, `OSError` that says so where the disk is full.
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"{directory} exists already; choose another place or move it away.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        with full_disk_explained(directory):
            (temporary / _CONFIG).write_text(config_text(ladder.config))
            (temporary / _CARD).write_text(json.dumps(ladder.card, indent=2) + "\n")
            for kind, calibration in ladder.calibrations.items():
                calibration.save(temporary / f"calibration_{kind}.npz")
            for k, network in enumerate(ladder.networks):
                half = _cast(network, np.float16)
                eqx.tree_serialise_leaves(temporary / f"level_{k + 1}.eqx", half)
            os.chmod(temporary, 0o755)
            temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_ladder(directory: str | Path = _SHIPPED) -> Ladder:
    """The ladder saved in a directory; without argument the one shipped with the package (four UNets
    on Fashion-MNIST, see its model card).

    Raises `FileNotFoundError` for a directory that is not a ladder, `ValueError` for levels that do not
    fit the description.
    """
    directory = Path(directory)
    if not (directory / _CONFIG).is_file():
        raise FileNotFoundError(
            f"{directory} is not a ladder: it has no {_CONFIG}. 'python -m mlem_jax train --out DIR' "
            "makes one in DIR/ladder."
        )
    config = read_saved_config(directory / _CONFIG)
    networks = []
    # Shapes only: drawing random parameters, to be replaced at once, takes many seconds.
    for k, network in enumerate(eqx.filter_eval_shape(config.networks)):
        path = directory / f"level_{k + 1}.eqx"
        try:
            stored = eqx.tree_deserialise_leaves(path, jax.tree.map(_half, network))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path} is missing: the parameters of level {k + 1} of {directory / _CONFIG}. Copy the ladder again, "
                "all files of its folder."
            ) from error
        except (RuntimeError, ValueError, EOFError) as error:
            raise ValueError(
                f"{path} does not hold level {k + 1} of {directory / _CONFIG}: it is damaged or belongs to "
                f"another ladder ({str(error).splitlines()[0]})."
            ) from error
        networks.append(_cast(stored, np.float32))
    try:
        card = json.loads((directory / _CARD).read_text())
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"{directory / _CARD} is damaged or missing ({error}). Copy the ladder again; if there is no other copy, "
            "write {} into that file: only what was measured after training is lost."
        ) from error
    files = sorted(directory.glob("calibration_*.npz"))
    calibrations = {path.stem.removeprefix("calibration_"): Calibration.load(path) for path in files}
    return Ladder(tuple(networks), config, card, calibrations)


def _kind(sde: bool, method: AbstractMethod) -> str:
    return ("sde" if sde else "ode") + ("" if method == METHODS[0] else f"_{method.order}")


def as_stored(network: AbstractNetwork) -> AbstractNetwork:
    """The network with its parameters rounded as `save_ladder` rounds them."""
    return _cast(_cast(network, np.float16), np.float32)


def _half(x: Any) -> Any:
    is_shape = isinstance(x, jax.ShapeDtypeStruct) and jnp.issubdtype(x.dtype, jnp.floating)
    return jax.ShapeDtypeStruct(x.shape, jnp.float16) if is_shape else x


def _cast(network: AbstractNetwork, dtype: Any) -> AbstractNetwork:
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, network)
