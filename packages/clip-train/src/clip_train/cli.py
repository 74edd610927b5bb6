"""The command line: `clip-train fit recipe.toml --optim.lr 1e-3`."""

from __future__ import annotations

import sys

from clip_core import ClipError
from clip_data.config import parse, run_cli
from clip_train.config import FitConfig
from clip_train.errors import ClipTrainError, RankLost, Requeue, Stopped
from clip_train.fitting import fit
from clip_train.launch import read_launch

_USAGE = """\
usage: clip-train fit [recipe.toml] [--dotted.flags …]

Trains the model that a recipe describes. The same command again continues a run that was stopped.
Exit codes: 0 done, 2 an error that one line names, 75 stopped by SIGTERM or SIGUSR1 with a checkpoint to continue from,
143 stopped by them before the first checkpoint.

  clip-train fit --help    every field of a recipe
"""


def main() -> None:
    """The console script, and `python -m clip_train` for torchrun."""
    run_cli(_main)


def _main() -> int:
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(_USAGE, end="")
        return 0
    if command != "fit":
        raise ClipTrainError(f"unknown command {command!r}: the one there is, is 'clip-train fit'")
    leads = read_launch().rank == 0
    try:
        config = parse(FitConfig, rest, prog="clip-train fit", description="Trains a dual encoder.")
        result = fit(config)
    except ClipError as error:
        if leads or isinstance(error, RankLost):
            raise
        return 2  # rank 0 says what was wrong
    except Requeue as stop:
        if leads:
            print(f"stopped by a signal after step {stop.step}, which is saved: run again to continue", file=sys.stderr)
        raise
    except Stopped:
        if leads:
            print("stopped by a signal before the first checkpoint: run again to start over", file=sys.stderr)
        raise
    if leads:
        held_out = "" if result.val_loss is None else f", held-out loss {result.val_loss:.4f}"
        print(f"{result.steps} steps, loss {result.loss:.4f}{held_out}: {result.model}")
    return 0
