"""One call from a file to a prediction of the noise."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

from .._predictor import Guided, NoisePredictor
from .._process import AbstractProcess
from .dit_files import find_dit, find_sit
from .edm2_files import find_edm2
from .family import Found, NotInFilesError, Source
from .files import Checkpoint, read_json
from .jit import find_jit
from .network import AbstractPretrained
from .parameters import load_parameters
from .unet2d import find_unet2d

_FINDERS: dict[str, Callable[[Source], Found]] = {
    "unet2d": find_unet2d,
    "dit": find_dit,
    "sit": find_sit,
    "edm2": find_edm2,
    "jit": find_jit,
}
# What diffusers writes as `_class_name` into config.json.
_CLASS_NAMES = {"UNet2DModel": "unet2d", "DiTTransformer2DModel": "dit"}
# An array that each family has and no other. The authors' DiT and SiT have the same names: those do not tell.
_MARKS = {
    "time_embedding.linear_1.weight": "unet2d",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight": "dit",
    "unet.emb_fourier.freqs": "edm2",
    "x_embedder.proj1.weight": "jit",
}
_FAMILIES = f"one of {', '.join(_FINDERS)}"
_CONFIG, _SCHEDULER, _PIPELINE = "config.json", "scheduler_config.json", "model_index.json"


def load_network(
    path: str | Path,
    *,
    family: str | None = None,
    dtype: DTypeLike = "float32",
    guidance: float | int | None = None,
    null: int | None = None,
    config: Mapping[str, Any] | None = None,
    process: AbstractProcess | None = None,
    prediction: str | None = None,
    conditioning: str | Callable[[Array], Array] | None = None,
) -> NoisePredictor:
    """A network that others have trained, with its process, prediction and conditioning: a level.

    !!! example

        ```python
        small, large = load_network("ddpm-small"), load_network("ddpm-large")  # folders that diffusers saved
        terms = sampling_terms(small, large)
        ```

    **Arguments:**

    - `path`: a `.safetensors` or `.npz` file, or a folder that diffusers' `save_pretrained` wrote, of a model or
        of a whole pipeline. A scheduler's configuration is searched in the folder, and in `scheduler` beside it.
    - `family`: which architecture; found from `config.json` and the names in the file where they tell.
    - `dtype`: in which the network computes and its weights are kept, such as `"bfloat16"`. The state keeps its own.
    - `guidance`: scale of classifier-free guidance, see [`mlem_jax.diffusion.Guided`][]; by default the network is
        as it is.
    - `null`: the label that stood for "no label" in training, for `guidance`; needed only where the file does not
        tell.
    - `config`: entries that replace those of the configuration, or that cannot be found from the file.
    - `process`, `prediction`, `conditioning`: replace what the family or the scheduler's configuration say, see
        [`mlem_jax.diffusion.NoisePredictor`][].

    Nothing in a file is executed: pickles are refused.

    Raises `FileNotFoundError` for a file or configuration that is missing; `ValueError` for a file that is
    damaged, a pickle, of another architecture than its configuration (arrays that are missing, not known, or of
    another shape are named) or with options that are not supported; and for guidance of a network without labels.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype={dtype!r}; a floating type is expected, such as 'bfloat16'.")
    if family is not None and family not in _FINDERS:
        raise ValueError(f"family={family!r} is not known; write one of {tuple(_FINDERS)}.")
    source = _read(Path(path), config or {})
    found = _FINDERS[_recognise(source) if family is None else family](source)
    network = load_parameters(found.build, source.checkpoint, found.name, dtype)
    training = found.training
    return NoisePredictor(
        network if guidance is None else _guided(network, found.name, guidance, null),
        training.process if process is None else process,
        training.prediction if prediction is None else prediction,
        training.conditioning if conditioning is None else conditioning,
    )


def _read(path: Path, settings: Mapping[str, Any]) -> Source:
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and (path / _PIPELINE).is_file():
        inside = [path / name for name in ("unet", "transformer") if (path / name).is_dir()]
        if not inside:
            raise FileNotFoundError(f"{path} is a pipeline without a folder unet or transformer.")
        folder = path = inside[0]
    places = (
        folder / _SCHEDULER,
        folder / "scheduler" / _SCHEDULER,
        folder.parent / "scheduler" / _SCHEDULER,
    )
    scheduler = next((read_json(place) for place in places if place.is_file()), None)
    checkpoint = Checkpoint(path)
    config = folder / _CONFIG
    return Source(checkpoint, read_json(config) if config.is_file() else None, scheduler, settings)


def _recognise(source: Source) -> str:
    kind = None if source.config is None else source.config.get("_class_name")
    if kind in _CLASS_NAMES:
        return _CLASS_NAMES[kind]
    if kind is not None:
        raise NotInFilesError(
            f"{source.path} holds a {kind}, which is not supported; supported are {', '.join(_CLASS_NAMES)}. It may "
            "be one of these by another name.",
            "family",
            _FAMILIES,
        )
    names = source.checkpoint.shapes
    families: set[str] = {family for mark, family in _MARKS.items() if mark in names}
    if len(families) != 1:
        raise NotInFilesError(
            f"The names in {source.path} do not tell which architecture it is.", "family", _FAMILIES
        )
    (family,) = families
    return family


def _guided(network: AbstractPretrained, name: str, scale: float | int, null: int | None) -> Guided:
    if network.classes is None:
        raise ValueError(
            f"Guidance of scale {scale:g} needs a network that takes labels, and this {name} takes none. Leave it out."
        )
    null = network.null if null is None else null
    if null is None:
        raise NotInFilesError(
            f'Guidance of scale {scale:g} needs the label that stood for "no label" in training, which the files of a '
            f"{name} do not tell.",
            "null",
            "its number",
        )
    return Guided(network, float(scale), null)
