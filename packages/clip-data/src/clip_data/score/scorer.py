"""The interface of scorers, and their registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from clip_core.registry import Registry

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some successful samples of one unit, in row order."""

    samples: pa.Table
    """their rows of the sidecar, every column"""
    images: Sequence[Image.Image]
    """their stored images in RGB, one per row; empty for a scorer that needs none"""


class Scorer(Protocol):
    """Turns samples into columns. Picklable; the same samples give the same columns on every machine.

    A user-defined scorer is passed as an object in place of a name of `SCORERS`, or as `package.module:Class`.
    """

    @property
    def name(self) -> str:
        """Names the column set: a Python identifier."""

    @property
    def version(self) -> int:
        """Increased when the columns of some sample change."""

    @property
    def needs_image(self) -> bool: ...

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""

    def score(self, batch: Batch) -> pa.Table:
        """Returns a table of `schema` with one row per sample of the batch, in its order."""


SCORERS: Registry[Callable[[], Scorer]] = Registry(
    "scorer", {"caption": "clip_data.score.caption:CaptionScorer", "image": "clip_data.score.image:ImageScorer"}
)


def get_scorer(name: str) -> Scorer:
    """Returns the scorer with a name or of a class `package.module:Class`. Raises ClipError if there is none."""
    return SCORERS.get(name)()
