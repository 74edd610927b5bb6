"""Architectures as data: frozen specs, and the table of named ones. Free of torch."""

from clip_models.specs.model import ModelSpec
from clip_models.specs.modern_text import ModernTextConfig
from clip_models.specs.openclip import from_open_clip_config, to_open_clip_config
from clip_models.specs.preprocess import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, PreprocessConfig
from clip_models.specs.table import add_model_config, get_model_spec, list_models
from clip_models.specs.text import CLIPTextConfig, DecoderConfig, HFTextConfig
from clip_models.specs.tokenizer import CLIP_BPE_VOCAB_SIZE, TOKENIZERS, TokenizerConfig
from clip_models.specs.tower import IMAGE_TOWERS, TEXT_TOWERS, TextConfig, VisionConfig, as_pair
from clip_models.specs.vision import ResNetConfig, TimmConfig, ViTConfig

__all__ = [
    "CLIP_BPE_VOCAB_SIZE",
    "IMAGE_TOWERS",
    "OPENAI_DATASET_MEAN",
    "OPENAI_DATASET_STD",
    "TEXT_TOWERS",
    "TOKENIZERS",
    "CLIPTextConfig",
    "DecoderConfig",
    "HFTextConfig",
    "ModelSpec",
    "ModernTextConfig",
    "PreprocessConfig",
    "ResNetConfig",
    "TextConfig",
    "TimmConfig",
    "TokenizerConfig",
    "ViTConfig",
    "VisionConfig",
    "add_model_config",
    "as_pair",
    "from_open_clip_config",
    "get_model_spec",
    "list_models",
    "to_open_clip_config",
]
