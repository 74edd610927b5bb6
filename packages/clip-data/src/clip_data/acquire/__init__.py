"""The acquire stage: from the URLs of a unit to a shard of pictures and a sidecar that accounts for every URL."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_data.acquire.codes import Code, Rejected
    from clip_data.acquire.config import AcquireConfig
    from clip_data.acquire.fetch import Fetcher, FetchResult
    from clip_data.acquire.image import Picture, treat
    from clip_data.acquire.stage import AcquireTask

_MODULES = {
    "AcquireConfig": "config",
    "AcquireTask": "stage",
    "Code": "codes",
    "FetchResult": "fetch",
    "Fetcher": "fetch",
    "Picture": "image",
    "Rejected": "codes",
    "treat": "image",
}

__all__ = ["AcquireConfig", "AcquireTask", "Code", "FetchResult", "Fetcher", "Picture", "Rejected", "treat"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
