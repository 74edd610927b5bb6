"""The sources of a stream, as recipes hold them; this module imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset, or a selection of it, that a stream draws from."""

    dataset: str
    """folder of the dataset: a path or an fsspec URL"""
    selection: str = ""
    """name of a selection; "" for every successful sample"""
    weight: float = 1.0
    """share of the stream's samples, relative to the other sources' weights (not to their sizes)"""
