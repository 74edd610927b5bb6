"""CLIP towers, tokenizers, preprocessing and weights, with OpenCLIP's names and state-dict layout.

Importing this module imports neither torch nor Pillow; each public name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_models.errors import ClipModelsError
    from clip_models.factory import create_model, create_model_and_transforms, create_model_from_pretrained
    from clip_models.model import CLIP
    from clip_models.preprocess import preprocess_eval, preprocess_train
    from clip_models.specs import (
        ModelSpec,
        PreprocessConfig,
        TextConfig,
        TokenizerConfig,
        VisionConfig,
        get_model_spec,
        list_models,
    )
    from clip_models.tokenizer import ClipTokenizer, get_tokenizer
    from clip_models.weights import load_model, save_model

_MODULE_OF = {
    "CLIP": "model",
    "ClipModelsError": "errors",
    "ClipTokenizer": "tokenizer",
    "ModelSpec": "specs",
    "PreprocessConfig": "specs",
    "TextConfig": "specs",
    "TokenizerConfig": "specs",
    "VisionConfig": "specs",
    "create_model": "factory",
    "create_model_and_transforms": "factory",
    "create_model_from_pretrained": "factory",
    "get_model_spec": "specs",
    "get_tokenizer": "tokenizer",
    "list_models": "specs",
    "load_model": "weights",
    "preprocess_eval": "preprocess",
    "preprocess_train": "preprocess",
    "save_model": "weights",
}

__all__ = [  # noqa: RUF022 -- the order of use
    "list_models",
    "get_model_spec",
    "create_model",
    "create_model_and_transforms",
    "create_model_from_pretrained",
    "get_tokenizer",
    "load_model",
    "save_model",
    "preprocess_eval",
    "preprocess_train",
    "CLIP",
    "ClipTokenizer",
    "ModelSpec",
    "VisionConfig",
    "TextConfig",
    "PreprocessConfig",
    "TokenizerConfig",
    "ClipModelsError",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
