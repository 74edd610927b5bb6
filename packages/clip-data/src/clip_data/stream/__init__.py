"""The sample stream: datasets in, batches in one fixed global order out."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_data.stream.loader import OnceReader, SampleStream, read_once
    from clip_data.stream.manifest import Manifest, build_manifest
    from clip_data.stream.overlap import refuse_overlap
    from clip_data.stream.source import Source

_MODULES = {
    "Manifest": "manifest",
    "OnceReader": "loader",
    "SampleStream": "loader",
    "Source": "source",
    "build_manifest": "manifest",
    "read_once": "loader",
    "refuse_overlap": "overlap",
}

__all__ = ["Manifest", "OnceReader", "SampleStream", "Source", "build_manifest", "read_once", "refuse_overlap"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
