"""What a stream is told to draw from; recipes hold it as it is, so this module imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset, or a selection of it, that a stream draws from."""

    root: str
    """fsspec URL of the dataset folder"""
    selection: str = ""
    """name of a selection; "" for every successful sample"""
    weight: float = 1.0
    """share of the stream's samples, relative to the other sources' weights (not to their sizes)"""
