"""Weights of other libraries: their layouts told apart and brought to OpenCLIP's, and written for them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip_models.convert.folders import save_huggingface, save_open_clip
    from clip_models.convert.huggingface import from_huggingface, spec_from_huggingface, to_huggingface

_PLACES = {
    "from_huggingface": "huggingface",
    "save_huggingface": "folders",
    "save_open_clip": "folders",
    "spec_from_huggingface": "huggingface",
    "to_huggingface": "huggingface",
}

__all__ = ["from_huggingface", "save_huggingface", "save_open_clip", "spec_from_huggingface", "to_huggingface"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
