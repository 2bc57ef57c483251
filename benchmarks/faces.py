"""Study 6: colour images of 64 x 64 pixels with a finest network of 595 MFLOP: gamma, plans, fitted steps, all rivals.

    python benchmarks/make_heads.py 42000 runs/heads   # its docstring says how to install its requirements
    python benchmarks/faces.py --quick --heads runs/heads --out runs/faces

trains the finest level of `benchmarks/faces.toml` on 40,000 heads, and then the four smaller levels twice: matched to
the finest level, all in one pass over its outputs, and independently on the images, as in the paper. After an
interruption the same command continues. With `--checkpoint DIR` the finest level is the latest checkpoint in an `--out`
of `python -m mlem_jax train --config benchmarks/faces.toml --levels 5`, which may still be running (it holds out other
images than this study). Levels matched to it are stored under its number of steps. With `--data PATH` instead of
`--heads` the images are others, for example a folder of CelebA's pictures, which are cropped and resized
(`mlem_jax.diffusion.load_data`), and the folder's name is part of the names of the results.

With `--ladder DIR` nothing is trained: the ladder in that folder is measured. The names of its results have the size of
its finest network. `benchmarks/faces_large.toml` has a finest network of 2,944 MFLOP, for an accelerator:

    python -m mlem_jax train --config benchmarks/faces_large.toml --data runs/heads --out runs/large --pilots 0
    python benchmarks/faces.py --quick --heads runs/heads --ladder runs/large/ladder --out runs/large/study

(The command `train` holds out other images than this study here too. The ladder of the committed results saw the first
40,000 heads only.)

There are three ladders (`--ladders`): *matched*, *independent*, and *without the finest*, the smaller levels of the
first one; results of a ladder that is left out are kept if they are of the same networks. The study has four parts
(`--parts`), each with files of results of its own, `benchmarks/results/faces_quick_PART.json`:

- `levels`: the error of each level against its cost in four ways, with gamma and its standard error for each
  (`_level_errors.py`), and the levels that plans keep (fitted steps are left out if this is the only part);
- `fitted`: study 8 on these ladders: fitted steps of several levels and of the finest one, rivals, in evaluations and
  seconds;
- `quality`: study 9 on these ladders, with features of crops (`_crops.py`), and sheets of images;
- `methods`: all methods of study 2, tuned and measured in the same way. With `--sde` for the reverse SDE.

The heads are synthetic, so the results are synthetic too. `--full` has more training, images and settings, for an
accelerator. `--smoke` has three tiny networks and images of 8 x 8 pixels, takes a few minutes, and writes only to its
`--out`. `--full` has not been run.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from _faces import calibrated, finest_network, load_heads, with_smaller_levels, without_finest
from _faces_parts import PARTS, Size, Task
from _faces_sizes import LARGE, SIZES
from _harness import add_sizes
from _shapes import colour_images

from mlem_jax.diffusion import Config, Ladder, Level, load_data, load_ladder, read_config, Training
from mlem_jax.diffusion._data import Images
from mlem_jax.diffusion._network import AbstractNetwork

CONFIG = Path(__file__).with_name("faces.toml")
MATCHED, INDEPENDENT, WITHOUT = "matched", "independent", "without the finest"
LADDERS = {"matched": MATCHED, "independent": INDEPENDENT, "without": WITHOUT}


def tiny_config() -> Config:
    """Three small networks for images of 8 x 8."""
    levels = tuple(Level(width, folds=(8,), multipliers=(1,), blocks=(1,)) for width in (4, 16, 64))
    training = Training(steps=20, match_steps=20, batch_size=16, warmup_steps=5, sheet_every=20)
    return Config("tiny", (8, 8, 3), levels, training=training)


def with_steps(config: Config, steps: int | None) -> Config:
    """With another number of training steps of the smaller levels."""
    training = dataclasses.replace(config.training, match_steps=steps or config.training.match_steps)
    return dataclasses.replace(config, training=training)


def found_images(
    name: str, size: Size, config: Config, arguments: argparse.Namespace
) -> tuple[Images, Images, str]:
    """Images of training and held out, and what they are. Raises `FileNotFoundError` or `ValueError`."""
    count, held_out = size.training, size.held_out
    if name == "smoke":
        images = colour_images(count + held_out, config.shape[0])
        return images[:count], images[count:], f"{count} synthetic shapes"
    if arguments.data is None:
        return (*load_heads(arguments.heads, count, held_out), f"{count} synthetic heads")
    data = load_data(arguments.data, config.shape, cache=arguments.out / "data")
    if len(data.held_out) < size.quality.images:
        raise ValueError(
            f"{arguments.data}: {len(data.held_out)} images are held out, a tenth of them all; at least "
            f"{size.quality.images} are needed, so give at least {10 * size.quality.images} images."
        )
    images = data.images[:count]
    return images, data.held_out[:held_out], f"{len(images)} images of {arguments.data}"


def built(
    name: str,
    size: Size,
    config: Config,
    finest: AbstractNetwork,
    steps: int,
    images: Images,
    held_out: Images,
    arguments: argparse.Namespace,
) -> Ladder:
    """One of the ladders on a finest level that was trained for some steps: its smaller levels, and calibrations."""
    matched = name != INDEPENDENT
    own = with_steps(config, size.matched_steps if matched else size.independent_steps)
    # Independent levels do not depend on the training of the finest level.
    stage = f"matched_{{}}_finest_{steps}" if matched else "independent_{}"
    folder = arguments.out / stage.format(own.training.match_steps)
    ladder = with_smaller_levels(own, finest, images, held_out, folder, matched=matched)
    if name == WITHOUT:
        ladder, folder = without_finest(ladder), folder / "without"
    return with_calibrations(ladder, folder / "calibrations", size, arguments)


def with_calibrations(ladder: Ladder, folder: Path, size: Size, arguments: argparse.Namespace) -> Ladder:
    """The ladder with the calibrations that the parts need."""
    return calibrated(
        ladder,
        folder,
        sde=arguments.sde,
        pilots=size.pilots,
        steps=size.steps,
        fit_pilots=0 if arguments.parts == ["levels"] else size.fit_pilots,
        most=size.most,
    )


def trained_here(
    name: str, size: Size, config: Config, arguments: argparse.Namespace
) -> tuple[dict[str, Ladder], Images, Images, dict[str, Any]]:
    """The three ladders, trained where they are not yet; images of training and held out; what they are."""
    images, held_out, words = found_images(name, size, config, arguments)
    finest, steps = finest_network(config, images, held_out, arguments.out, checkpoint=arguments.checkpoint)
    print(f"the finest level has been trained for {steps} steps", flush=True)
    ladders = {
        long: built(long, size, config, finest, steps, images, held_out, arguments)
        for long in (LADDERS[short] for short in arguments.ladders or LADDERS)
    }
    about = {
        "data": words,
        "finest_steps": steps,
        "matched_steps": size.matched_steps or config.training.match_steps,
        "independent_steps": size.independent_steps or config.training.match_steps,
        "training": dataclasses.asdict(config.training),
    }
    return ladders, images, held_out, about


def trained_elsewhere(
    name: str, size: Size, arguments: argparse.Namespace
) -> tuple[dict[str, Ladder], Images, Images, dict[str, Any]]:
    """The same for the ladder of `--ladder`."""
    ladder = load_ladder(arguments.ladder)
    images, held_out, words = found_images(name, size, ladder.config, arguments)
    training = ladder.config.training
    about = {
        "data": words,
        "finest_steps": training.steps,
        "matched_steps": training.match_steps,
        "training": dataclasses.asdict(training),
    }
    ladder = with_calibrations(ladder, arguments.out / "calibrations", size, arguments)
    return {MATCHED: ladder}, images, held_out, about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_sizes(parser)
    parser.add_argument(
        "--heads", type=Path, default=Path("runs/heads"), help="folder that make_heads.py wrote"
    )
    parser.add_argument("--data", type=Path, help="other images, see above")
    parser.add_argument("--out", type=Path, default=Path("runs/faces"), help="where networks are trained")
    parser.add_argument("--checkpoint", type=Path, help="folder of a training of the finest level, see above")
    parser.add_argument("--ladder", type=Path, help="folder of a trained ladder, see above")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="by default all")
    parser.add_argument("--ladders", nargs="+", choices=LADDERS, help="by default all")
    parser.add_argument(
        "--sde", action="store_true", help="the reverse SDE instead of the probability flow (methods alone)"
    )
    arguments = parser.parse_args()
    name, sde, out = arguments.size, arguments.sde, arguments.out
    if sde and arguments.parts != ["methods"]:
        parser.error("--sde is for --parts methods alone")
    if arguments.ladder is not None and (arguments.checkpoint is not None or arguments.ladders is not None):
        parser.error(
            "--ladder is a trained ladder; leave out --checkpoint and --ladders, which are for training"
        )
    size = LARGE if name == "quick" and arguments.ladder is not None else SIZES[name]
    try:
        if arguments.ladder is None:
            config = tiny_config() if name == "smoke" else read_config(CONFIG)
            ladders, images, held_out, about = trained_here(name, size, config, arguments)
        else:
            ladders, images, held_out, about = trained_elsewhere(name, size, arguments)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    stem = f"faces_{name}"
    if arguments.data is not None:
        stem += f"_{arguments.data.stem}"
    if arguments.ladder is not None:
        stem += f"_{ladders[MATCHED].flops()[-1] / 1e6:.0f}_mflop"
    if sde:
        stem += "_sde"
    for part in arguments.parts:
        kept = None if name == "smoke" else stem
        PARTS[part](Task(ladders, size, images, held_out, out, kept, about, sde))


if __name__ == "__main__":
    main()
