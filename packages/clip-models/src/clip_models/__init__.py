"""CLIP towers, tokenizers, preprocessing and weights, with OpenCLIP's names and state-dict layout.

Importing this module imports neither torch nor Pillow; each public name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_core import ImageError, load_image
    from clip_models.classification import LabelScore, classify
    from clip_models.coca import CoCa
    from clip_models.convert import from_huggingface, save_huggingface, save_open_clip, to_huggingface
    from clip_models.download import download_pretrained_from_url
    from clip_models.embedding.config import EmbedConfig
    from clip_models.embedding.parts import read_embeddings
    from clip_models.embedding.run import EmbedSummary, embed
    from clip_models.encoder import Encoder
    from clip_models.errors import ClipModelsError
    from clip_models.export.exporting import export_model
    from clip_models.export.push import push_to_hub
    from clip_models.factory import (
        create_model,
        create_model_and_transforms,
        create_model_from_pretrained,
        get_model_config,
        get_model_preprocess_cfg,
        get_model_tokenize_cfg,
        load_checkpoint,
    )
    from clip_models.hub import download_pretrained
    from clip_models.model import CLIP, build_model
    from clip_models.precision import convert_weights_to_lp, get_cast_dtype, get_input_dtype
    from clip_models.preprocess import image_transform, image_transform_v2, preprocess_eval, preprocess_train
    from clip_models.pretrained import (
        PretrainedTag,
        get_pretrained_cfg,
        get_pretrained_tag,
        get_pretrained_url,
        is_pretrained_cfg,
        list_pretrained,
        list_pretrained_models_by_tag,
        list_pretrained_tags_by_model,
    )
    from clip_models.profiling import Profile, profile
    from clip_models.quantization import QuantizationReport, quantize
    from clip_models.scorer import ClipScorer
    from clip_models.specs import (
        OPENAI_DATASET_MEAN,
        OPENAI_DATASET_STD,
        CLIPTextConfig,
        DecoderConfig,
        HFTextConfig,
        ModelSpec,
        ModernTextConfig,
        PreprocessConfig,
        ResNetConfig,
        TimmConfig,
        TokenizerConfig,
        ViTConfig,
        add_model_config,
        from_open_clip_config,
        get_model_spec,
        list_models,
        to_open_clip_config,
    )
    from clip_models.specs.augmentation import AugmentationConfig
    from clip_models.tokenizers import ClipTokenizer, Tokenizer, decode, get_tokenizer, tokenize
    from clip_models.weights import describe_source, load_model, save_model

_MODULE_OF = {
    "OPENAI_DATASET_MEAN": "specs",
    "OPENAI_DATASET_STD": "specs",
    "AugmentationConfig": "specs.augmentation",
    "CLIP": "model",
    "CLIPTextConfig": "specs",
    "ClipModelsError": "errors",
    "ClipScorer": "scorer",
    "ClipTokenizer": "tokenizers",
    "CoCa": "coca",
    "DecoderConfig": "specs",
    "EmbedConfig": "embedding.config",
    "EmbedSummary": "embedding.run",
    "Encoder": "encoder",
    "HFTextConfig": "specs",
    "LabelScore": "classification",
    "ModelSpec": "specs",
    "ModernTextConfig": "specs",
    "PreprocessConfig": "specs",
    "PretrainedTag": "pretrained",
    "Profile": "profiling",
    "QuantizationReport": "quantization",
    "ResNetConfig": "specs",
    "TimmConfig": "specs",
    "Tokenizer": "tokenizers",
    "TokenizerConfig": "specs",
    "ViTConfig": "specs",
    "add_model_config": "specs",
    "build_model": "model",
    "classify": "classification",
    "convert_weights_to_lp": "precision",
    "create_model": "factory",
    "create_model_and_transforms": "factory",
    "create_model_from_pretrained": "factory",
    "decode": "tokenizers",
    "describe_source": "weights",
    "download_pretrained": "hub",
    "download_pretrained_from_url": "download",
    "embed": "embedding.run",
    "export_model": "export.exporting",
    "from_huggingface": "convert",
    "from_open_clip_config": "specs",
    "get_cast_dtype": "precision",
    "get_input_dtype": "precision",
    "get_model_config": "factory",
    "get_model_preprocess_cfg": "factory",
    "get_model_spec": "specs",
    "get_model_tokenize_cfg": "factory",
    "get_pretrained_cfg": "pretrained",
    "get_pretrained_tag": "pretrained",
    "get_pretrained_url": "pretrained",
    "get_tokenizer": "tokenizers",
    "image_transform": "preprocess",
    "image_transform_v2": "preprocess",
    "is_pretrained_cfg": "pretrained",
    "list_models": "specs",
    "list_pretrained": "pretrained",
    "list_pretrained_models_by_tag": "pretrained",
    "list_pretrained_tags_by_model": "pretrained",
    "load_checkpoint": "factory",
    "load_model": "weights",
    "preprocess_eval": "preprocess",
    "preprocess_train": "preprocess",
    "profile": "profiling",
    "push_to_hub": "export.push",
    "quantize": "quantization",
    "read_embeddings": "embedding.parts",
    "save_huggingface": "convert",
    "save_model": "weights",
    "save_open_clip": "convert",
    "to_huggingface": "convert",
    "to_open_clip_config": "specs",
    "tokenize": "tokenizers",
}

_OF_CORE = ("ImageError", "load_image")

__all__ = [  # noqa: RUF022 -- the order of use
    "list_models",
    "get_model_spec",
    "add_model_config",
    "get_model_config",
    "list_pretrained",
    "list_pretrained_models_by_tag",
    "list_pretrained_tags_by_model",
    "is_pretrained_cfg",
    "get_pretrained_cfg",
    "get_pretrained_tag",
    "get_pretrained_url",
    "download_pretrained",
    "download_pretrained_from_url",
    "create_model",
    "create_model_and_transforms",
    "create_model_from_pretrained",
    "build_model",
    "load_checkpoint",
    "load_model",
    "save_model",
    "describe_source",
    "get_model_preprocess_cfg",
    "get_model_tokenize_cfg",
    "get_tokenizer",
    "tokenize",
    "decode",
    "preprocess_eval",
    "preprocess_train",
    "image_transform",
    "image_transform_v2",
    "load_image",
    "convert_weights_to_lp",
    "get_cast_dtype",
    "get_input_dtype",
    "quantize",
    "profile",
    "export_model",
    "push_to_hub",
    "from_open_clip_config",
    "to_open_clip_config",
    "from_huggingface",
    "to_huggingface",
    "save_huggingface",
    "save_open_clip",
    "embed",
    "read_embeddings",
    "classify",
    "OPENAI_DATASET_MEAN",
    "OPENAI_DATASET_STD",
    "CLIP",
    "CoCa",
    "ClipScorer",
    "ClipTokenizer",
    "Encoder",
    "Tokenizer",
    "ModelSpec",
    "ViTConfig",
    "ResNetConfig",
    "TimmConfig",
    "CLIPTextConfig",
    "ModernTextConfig",
    "HFTextConfig",
    "DecoderConfig",
    "PreprocessConfig",
    "AugmentationConfig",
    "TokenizerConfig",
    "EmbedConfig",
    "EmbedSummary",
    "LabelScore",
    "PretrainedTag",
    "Profile",
    "QuantizationReport",
    "ClipModelsError",
    "ImageError",
]


def __getattr__(name: str) -> object:
    if name in _OF_CORE:
        return getattr(import_module("clip_core"), name)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF, *_OF_CORE])
