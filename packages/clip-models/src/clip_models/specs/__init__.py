"""Architectures as data: frozen specs, and the table of named ones. Free of torch."""

from clip_models.specs.model import ModelSpec as ModelSpec
from clip_models.specs.modern_text import ModernTextConfig as ModernTextConfig
from clip_models.specs.openclip import from_open_clip_config as from_open_clip_config
from clip_models.specs.openclip import to_open_clip_config as to_open_clip_config
from clip_models.specs.preprocess import OPENAI_DATASET_MEAN as OPENAI_DATASET_MEAN
from clip_models.specs.preprocess import OPENAI_DATASET_STD as OPENAI_DATASET_STD
from clip_models.specs.preprocess import PreprocessConfig as PreprocessConfig
from clip_models.specs.table import add_model_config as add_model_config
from clip_models.specs.table import get_model_spec as get_model_spec
from clip_models.specs.table import list_models as list_models
from clip_models.specs.text import CLIPTextConfig as CLIPTextConfig
from clip_models.specs.text import DecoderConfig as DecoderConfig
from clip_models.specs.text import HFTextConfig as HFTextConfig
from clip_models.specs.tokenizer import CLIP_BPE_VOCAB_SIZE as CLIP_BPE_VOCAB_SIZE
from clip_models.specs.tokenizer import TOKENIZERS as TOKENIZERS
from clip_models.specs.tokenizer import TokenizerConfig as TokenizerConfig
from clip_models.specs.tower import IMAGE_TOWERS as IMAGE_TOWERS
from clip_models.specs.tower import TEXT_TOWERS as TEXT_TOWERS
from clip_models.specs.tower import TextConfig as TextConfig
from clip_models.specs.tower import VisionConfig as VisionConfig
from clip_models.specs.tower import as_pair as as_pair
from clip_models.specs.vision import ResNetConfig as ResNetConfig
from clip_models.specs.vision import TimmConfig as TimmConfig
from clip_models.specs.vision import ViTConfig as ViTConfig
