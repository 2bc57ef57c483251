"""Progress of a training run: images drawn by the current networks, and their held-out losses."""

from pathlib import Path

import diffrax
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from ..._io import write_text_safely
from .._data import Images
from .._ladder import Config
from .._network import AbstractNetwork
from .._predictor import ProbabilityFlow
from .._sampling import make_grid, save_grid
from .batches import held_out_losses
from .board import Board
from .train import Averages

_COLUMNS = 8
_STEPS = 32
_HELD_OUT = 250


@eqx.filter_jit
def _draw(config: Config, network: AbstractNetwork) -> Float[Array, "n h w c"]:
    """By plain Euler on the probability flow, from noise that is always the same."""
    ts = config.process.grid(_STEPS)
    start = ts[0] * jr.normal(jr.key(config.training.seed + 3), (_COLUMNS, *config.shape))
    term = diffrax.ODETerm(ProbabilityFlow(config.predictor(network)))
    controller = diffrax.StepTo(ts)
    # With classes, one image of each class.
    labels = None if config.classes is None else jnp.arange(_COLUMNS) % config.classes
    solution = diffrax.diffeqsolve(
        term, diffrax.Euler(), ts[0], ts[-1], None, start, labels, stepsize_controller=controller
    )
    assert solution.ys is not None
    return solution.ys[0]


class Sheets:
    """Called with the number of steps done and the networks, writes `STAGE-STEP.png`, a row of images for each
    network, and a line of `STAGE.csv` with their held-out losses; both also to TensorBoard, with a `board`. A file that
    is there is replaced in one step. Networks are the averages of the first decay.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        config: Config,
        held_out: Images,
        labels: Int[np.ndarray, " n"] | None = None,
        board: Board | None = None,
    ):
        self.folder, self.stage, self.config, self.board = folder, stage, config, board
        self.held_out = held_out[:_HELD_OUT]
        self.labels = None if labels is None else labels[:_HELD_OUT]

    def __call__(self, step: int, averages: Averages) -> None:
        networks = averages[0]
        self.folder.mkdir(parents=True, exist_ok=True)
        images = np.concatenate([np.asarray(_draw(self.config, network)) for network in networks])
        # A network that is not trained yet may draw anything.
        images = np.nan_to_num(images, nan=0.0, posinf=1.0, neginf=-1.0)
        save_grid(self.folder / f"{self.stage}-{step:08d}.png", images, columns=_COLUMNS)
        losses = held_out_losses(self.config, networks, self.held_out, self.labels)["data"]
        if self.board is not None:
            self.board.sheet(step, make_grid(images, columns=_COLUMNS), losses)
        path = self.folder / f"{self.stage}.csv"
        header = ",".join(["step", *(f"network_{k + 1}" for k in range(len(losses)))])
        lines = path.read_text().splitlines()[1:] if path.is_file() else []
        # A run that was killed repeats the steps after its last checkpoint, and their lines are written anew.
        lines = [line for line in lines if int(line.split(",")[0]) < step]
        lines.append(",".join([str(step), *(f"{loss:.6f}" for loss in losses)]))
        write_text_safely(path, "\n".join([header, *lines]) + "\n")
