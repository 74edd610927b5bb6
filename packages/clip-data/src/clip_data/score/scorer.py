"""What a scorer is, and the registry of the built-in ones."""

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

    A scorer of another package is used by passing the object where a name of `SCORERS` would stand.
    """

    @property
    def name(self) -> str:
        """Names the column set: a Python identifier."""

    @property
    def version(self) -> int:
        """Raised whenever the columns of some sample change."""

    @property
    def needs_image(self) -> bool: ...

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""

    def score(self, batch: Batch) -> pa.Table:
        """A table of `schema` with one row per sample of the batch, in its order."""


SCORERS: Registry[Callable[[], Scorer]] = Registry(
    "scorer",
    {"caption": "clip_data.score.caption:CaptionScorer", "image": "clip_data.score.image:ImageScorer"},
)


def get_scorer(name: str) -> Scorer:
    """The scorer of that name, or of a class named `package.module:Class`; ClipError when there is none."""
    return SCORERS.get(name)()
