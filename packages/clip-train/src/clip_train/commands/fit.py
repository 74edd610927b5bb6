"""`clip-train fit`: trains a model from a recipe."""

import sys

from clip_train.config import FitConfig as Config
from clip_train.entrypoint import fit
from clip_train.errors import Requeue, Stopped
from clip_train.launch import read_launch

__all__ = ["Config", "run"]


def run(config: Config) -> int:
    leads = read_launch().rank == 0
    try:
        result = fit(config)
    except (Requeue, Stopped) as stop:
        if leads:
            again = (
                f"after step {stop.step}, which is saved: run again to continue"
                if isinstance(stop, Requeue)
                else "before the first checkpoint: run again to start over"
            )
            print(f"stopped by a signal {again}", file=sys.stderr)
        raise
    if leads:
        held_out = "" if result.val_loss is None else f", held-out loss {result.val_loss:.4f}"
        print(f"{result.steps} steps, loss {result.loss:.4f}{held_out}: {result.model}")
    return 0
