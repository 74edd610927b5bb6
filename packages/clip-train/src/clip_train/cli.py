"""The command `clip-train`: `clip-train fit recipe.toml --optim.lr 1e-3`."""

import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from clip_core import ClipError
from clip_core.cli import run_commands
from clip_train.errors import RankLost
from clip_train.launch import read_launch

COMMANDS = {
    "fit": "train a model from a recipe",
    "export": "write the weights of a checkpoint, or the mean of several, as one file",
    "bench": "time the steps of a recipe, and say what limits them",
    "lr-find": "look for a learning rate by raising it from step to step",
    "convert-openclip-args": "turn a command line of OpenCLIP's trainer into a recipe",
    "interpolate": "models between a pretrained and a fine-tuned one, and their scores (WiSE-FT)",
    "submit": "train on a SLURM cluster: write the batch script of a run and submit it",
}
ABOUT = """\
Running the same command again continues a run that was stopped.
Exit codes: 0 done; 2 an error, printed in one line; 75 stopped by SIGTERM or SIGUSR1 after a checkpoint; 143 stopped
by them before the first checkpoint."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs the console script, and `python -m clip_train` for torchrun."""
    words = sys.argv[1:] if args is None else args
    # `from` cannot be the name of a field.
    words = [re.sub("^--from(?==|$)", "--parent", word) for word in words]
    if words[:1] == ["convert-openclip-args"]:  # a whole command line in quotes is not a flag
        words = [f" {word}" if word.startswith("--") and " " in word else word for word in words]
    # `submit … -- --optim.lr 1e-3`: flags of the job and of the training need not be told apart.
    run_commands("clip_train", COMMANDS, ABOUT, [word for word in words if word != "--"], quiet=_printed_by_rank_0)


def _printed_by_rank_0(error: ClipError) -> bool:
    try:
        return not isinstance(error, RankLost) and read_launch().rank > 0
    except ClipError:  # the variables of the launcher are invalid: this rank does not know its number
        return False
