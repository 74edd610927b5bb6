"""`clip-train lr-find`: looks for a learning rate by raising it from step to step (Smith 2017)."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from clip_train.config import FitConfig, resolve
from clip_train.errors import ClipTrainError
from clip_train.launch import read_launch

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(FitConfig):
    """A training run, and the rates to try on it. Its folder is neither read nor written."""

    lowest: float = 1e-7
    """learning rate of the first step"""
    highest: float = 1.0
    """learning rate of the last step"""
    tries: int = 100
    """steps"""
    out: str = ""
    """a file for the curve, in JSON"""


def run(config: Config) -> int:
    if not 0 < config.lowest < config.highest:
        raise ClipTrainError(f"lowest = {config.lowest} must be above 0 and below highest = {config.highest}")
    if config.tries < 10:
        raise ClipTrainError(f"tries = {config.tries} must be at least 10")
    recipe = resolve(FitConfig(**{f.name: getattr(config, f.name) for f in fields(FitConfig)}))
    from clip_train.trial import range_test, trial

    with trial(recipe) as parts:
        found = range_test(parts, config.lowest, config.highest, config.tries)
    if read_launch().rank == 0:
        if config.out:
            Path(config.out).write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
        print(f"tried {len(found.lr)} rates from {found.lr[0]:.3g} to {found.lr[-1]:.3g}")
        print(f"lowest loss {min(found.smoothed):.4f}; suggested optim.lr = {found.suggested:.3g}")
    return 0
