"""The command `clip-train`: `clip-train fit recipe.toml --optim.lr 1e-3`."""

from collections.abc import Sequence
from typing import NoReturn

from clip_core import ClipError
from clip_core.cli import run_commands
from clip_train.errors import RankLost
from clip_train.launch import read_launch

COMMANDS = {"fit": "train the model that a recipe describes"}
ABOUT = """\
The same command again continues a run that was stopped.
Exit codes: 0 done, 2 an error that one line names, 75 stopped by SIGTERM or SIGUSR1 with a checkpoint to continue from,
143 stopped by them before the first checkpoint."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The console script, and `python -m clip_train` for torchrun."""
    run_commands("clip_train", COMMANDS, ABOUT, args, quiet=_rank_0_says_it)


def _rank_0_says_it(error: ClipError) -> bool:
    try:
        return not isinstance(error, RankLost) and read_launch().rank > 0
    except ClipError:  # no rank knows that it is not the first
        return False
