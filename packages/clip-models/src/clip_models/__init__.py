"""CLIP towers, tokenizers, preprocessing and weights, with OpenCLIP's names and state-dict layout.

Importing this module imports neither torch nor Pillow; each public name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_core import ImageError, load_image
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
    from clip_models.inference.classify import LabelScore, classify
    from clip_models.inference.embedding.config import EmbedConfig
    from clip_models.inference.embedding.parts import read_embeddings
    from clip_models.inference.embedding.run import EmbedSummary, embed
    from clip_models.inference.encoder import Encoder
    from clip_models.inference.profiling import Profile, profile
    from clip_models.inference.quantization import QuantizationReport, quantize
    from clip_models.inference.scorer import ClipScorer
    from clip_models.model import CLIP, build_model
    from clip_models.model.coca import CoCa
    from clip_models.model.precision import convert_weights_to_lp, get_cast_dtype, get_input_dtype
    from clip_models.preprocess.image import image_transform, image_transform_v2, preprocess_eval, preprocess_train
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
    from clip_models.weights.convert.folders import save_huggingface, save_open_clip
    from clip_models.weights.convert.huggingface import to_huggingface
    from clip_models.weights.download import download_pretrained_from_url
    from clip_models.weights.hub import download_pretrained
    from clip_models.weights.load import describe_source, from_huggingface, load_model
    from clip_models.weights.registry import (
        PretrainedTag,
        get_pretrained_cfg,
        get_pretrained_tag,
        get_pretrained_url,
        is_pretrained_cfg,
        list_pretrained,
        list_pretrained_models_by_tag,
        list_pretrained_tags_by_model,
    )
    from clip_models.weights.save import save_model

_MODULE_OF = {
    "OPENAI_DATASET_MEAN": "specs",
    "OPENAI_DATASET_STD": "specs",
    "AugmentationConfig": "specs.augmentation",
    "CLIP": "model",
    "CLIPTextConfig": "specs",
    "ClipModelsError": "errors",
    "ClipScorer": "inference.scorer",
    "ClipTokenizer": "tokenizers",
    "CoCa": "model",
    "DecoderConfig": "specs",
    "EmbedConfig": "inference.embedding.config",
    "EmbedSummary": "inference.embedding.run",
    "Encoder": "inference.encoder",
    "HFTextConfig": "specs",
    "LabelScore": "inference.classify",
    "ModelSpec": "specs",
    "ModernTextConfig": "specs",
    "PreprocessConfig": "specs",
    "PretrainedTag": "weights.registry",
    "Profile": "inference.profiling",
    "QuantizationReport": "inference.quantization",
    "ResNetConfig": "specs",
    "TimmConfig": "specs",
    "Tokenizer": "tokenizers",
    "TokenizerConfig": "specs",
    "ViTConfig": "specs",
    "add_model_config": "specs",
    "build_model": "model",
    "classify": "inference.classify",
    "convert_weights_to_lp": "model.precision",
    "create_model": "factory",
    "create_model_and_transforms": "factory",
    "create_model_from_pretrained": "factory",
    "decode": "tokenizers",
    "describe_source": "weights.load",
    "download_pretrained": "weights.hub",
    "download_pretrained_from_url": "weights.download",
    "embed": "inference.embedding.run",
    "export_model": "export.exporting",
    "from_huggingface": "weights.load",
    "from_open_clip_config": "specs",
    "get_cast_dtype": "model.precision",
    "get_input_dtype": "model.precision",
    "get_model_config": "factory",
    "get_model_preprocess_cfg": "factory",
    "get_model_spec": "specs",
    "get_model_tokenize_cfg": "factory",
    "get_pretrained_cfg": "weights.registry",
    "get_pretrained_tag": "weights.registry",
    "get_pretrained_url": "weights.registry",
    "get_tokenizer": "tokenizers",
    "image_transform": "preprocess.image",
    "image_transform_v2": "preprocess.image",
    "is_pretrained_cfg": "weights.registry",
    "list_models": "specs",
    "list_pretrained": "weights.registry",
    "list_pretrained_models_by_tag": "weights.registry",
    "list_pretrained_tags_by_model": "weights.registry",
    "load_checkpoint": "factory",
    "load_model": "weights.load",
    "preprocess_eval": "preprocess.image",
    "preprocess_train": "preprocess.image",
    "profile": "inference.profiling",
    "push_to_hub": "export.push",
    "quantize": "inference.quantization",
    "read_embeddings": "inference.embedding.parts",
    "save_huggingface": "weights.convert.folders",
    "save_model": "weights.save",
    "save_open_clip": "weights.convert.folders",
    "to_huggingface": "weights.convert.huggingface",
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
