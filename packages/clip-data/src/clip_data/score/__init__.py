"""Scorers: functions of a stored sample whose results stand as columns beside the shards.

A score never removes anything; what to keep is decided later by a selection over the columns.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_data.score.caption import CaptionScorer
    from clip_data.score.image import ImageScorer
    from clip_data.score.scorer import SCORERS, Batch, Scorer, get_scorer
    from clip_data.score.task import ScoreTask

_MODULES = {
    "SCORERS": "scorer",
    "Batch": "scorer",
    "CaptionScorer": "caption",
    "ImageScorer": "image",
    "ScoreTask": "task",
    "Scorer": "scorer",
    "get_scorer": "scorer",
}

__all__ = ["SCORERS", "Batch", "CaptionScorer", "ImageScorer", "ScoreTask", "Scorer", "get_scorer"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
