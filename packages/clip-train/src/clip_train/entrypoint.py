"""The function `fit`, which checks a config before it imports torch."""

from clip_train.config import FitConfig, resolve
from clip_train.digests import with_digests
from clip_train.runfolder import FitResult, RunFolder


def fit(config: FitConfig) -> FitResult:
    """Trains, continues a run that was stopped, or returns the result of a finished one.

    Under torchrun every rank calls it. Raises ClipError; inputs are checked before the first write. SIGTERM and
    SIGUSR1 save a checkpoint and raise Requeue. A script should not catch it: it ends the process with exit code 75.
    """
    config = with_digests(resolve(config))
    folder = RunFolder(config)
    if result := folder.finished():
        return result
    from clip_train.trainer import train

    return train(config, folder)
