"""ModelSpec: a dual encoder as data."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from clip_core.config import to_dict
from clip_models.errors import ClipModelsError
from clip_models.specs.checks import check_spec
from clip_models.specs.preprocess import PreprocessConfig
from clip_models.specs.text import CLIPTextConfig, DecoderConfig
from clip_models.specs.tokenizer import TokenizerConfig
from clip_models.specs.tower import TextConfig, VisionConfig, as_pair
from clip_models.specs.values import from_dict
from clip_models.specs.vision import ViTConfig


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What is needed to build a dual encoder and to prepare its inputs; saved with the weights."""

    name: str
    """Name of the architecture, OpenCLIP's where it has one."""
    embed_dim: int
    """Channels of the shared embedding."""
    quick_gelu: bool = False
    """x·sigmoid(1.702x) instead of GELU in the native towers. The tensors do not show which one was trained."""
    custom_text: bool = False
    """Keep the text tower's tensors under `text.`, not at the root. Always so for hf and modern towers and for CoCa."""
    init_logit_scale: float | None = None
    """Logarithm of the initial scale of the logits; None is ln(1/0.07)."""
    init_logit_bias: float | None = None
    """Initial bias of the logits (SigLIP); None is no bias."""
    vision: VisionConfig = field(default_factory=ViTConfig)
    """The image tower."""
    text: TextConfig = field(default_factory=CLIPTextConfig)
    """The text tower."""
    decoder: DecoderConfig | None = None
    """The multimodal decoder, which makes it a CoCa."""
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    """How images are preprocessed."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """How captions are tokenized."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ClipModelsError("a model spec needs a name")
        if self.embed_dim <= 0:
            raise ClipModelsError(f"embed_dim {self.embed_dim} must be positive")
        check_spec(self)

    @property
    def text_at_root(self) -> bool:
        """Whether the text tower's tensors are at the root of the model, as in OpenAI's weights."""
        return isinstance(self.text, CLIPTextConfig) and not self.custom_text and self.decoder is None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types; `from_dict` is its inverse."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads a spec from plain types. Raises ClipModelsError for unknown keys, wrong types and impossible sizes.

        Without `preprocess.size` the preprocessing takes the size of the image tower.
        """
        vision, preprocess = data.get("vision"), data.get("preprocess", {})
        if isinstance(vision, Mapping) and isinstance(preprocess, Mapping):
            size = vision.get("image_size", VisionConfig.image_size)
            data = {**data, "preprocess": {"size": as_pair(size), **preprocess}}
        return from_dict(cls, data, "model spec")

    def describe_difference(self, other: "ModelSpec") -> str:
        """Returns the first difference of the two networks, or "" if weights fit both. Names may differ."""
        for key in ("embed_dim", "quick_gelu", "vision", "text", "decoder"):
            mine, theirs = getattr(self, key), getattr(other, key)
            if mine == theirs:
                continue
            if not dataclasses.is_dataclass(mine) or type(mine) is not type(theirs):
                return f"{key} {mine} against {theirs}"
            names = [f.name for f in dataclasses.fields(mine) if getattr(mine, f.name) != getattr(theirs, f.name)]
            return f"{key}.{names[0]} {getattr(mine, names[0])} against {getattr(theirs, names[0])}"
        return ""
