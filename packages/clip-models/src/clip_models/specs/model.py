"""ModelSpec: a dual encoder as data."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from clip_models.errors import ClipModelsError
from clip_models.specs.checks import check_spec
from clip_models.specs.modern_text import ModernTextConfig
from clip_models.specs.plain import from_plain, to_plain
from clip_models.specs.preprocess import PreprocessConfig
from clip_models.specs.text import CLIPTextConfig, DecoderConfig, HFTextConfig
from clip_models.specs.tokenizer import TokenizerConfig
from clip_models.specs.vision import ResNetConfig, TimmConfig, ViTConfig

TextConfig = CLIPTextConfig | ModernTextConfig | HFTextConfig
"""What `ModelSpec.text` may be; `kind` in plain data: clip, modern, hf."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that is needed to build a dual encoder and to feed it; travels with the weights."""

    name: str
    """Name of the architecture, OpenCLIP's where it has one."""
    embed_dim: int
    """Channels of the shared embedding."""
    quick_gelu: bool = False
    """x·sigmoid(1.702x) in place of GELU in the native towers. No tensor tells which one the weights were made with."""
    custom_text: bool = False
    """Keep the text tower's tensors under `text.`, not at the root. Always so for hf and modern towers and for CoCa."""
    init_logit_scale: float | None = None
    """Logarithm of the initial scale of the logits; None is ln(1/0.07)."""
    init_logit_bias: float | None = None
    """Initial bias of the logits (SigLIP); None is no bias."""
    vision: ViTConfig | ResNetConfig | TimmConfig = field(default_factory=ViTConfig)
    """The image tower."""
    text: CLIPTextConfig | ModernTextConfig | HFTextConfig = field(default_factory=CLIPTextConfig)
    """The text tower."""
    decoder: DecoderConfig | None = None
    """The multimodal decoder, which makes it a CoCa."""
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    """Treatment of the pictures."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Treatment of the captions."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ClipModelsError("a model spec needs a name")
        if self.embed_dim <= 0:
            raise ClipModelsError(f"embed_dim {self.embed_dim} must be positive")
        check_spec(self)

    @property
    def text_at_root(self) -> bool:
        """Whether the text tower's tensors stand at the root of the model, as in OpenAI's weights."""
        return isinstance(self.text, CLIPTextConfig) and not self.custom_text and self.decoder is None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is its inverse."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """A spec from plain types. Unknown keys, wrong types and impossible sizes raise ClipModelsError.

        Without `preprocess.size` the preprocessing takes the size of the image tower.
        """
        if "vision" in data and isinstance(data["vision"], Mapping):
            size = data["vision"].get("image_size", ViTConfig.image_size)
            pair = [size, size] if isinstance(size, int) else size
            preprocess = data.get("preprocess", {})
            if isinstance(preprocess, Mapping):
                data = {**data, "preprocess": {"size": pair, **preprocess}}
        return from_plain(cls, data, "model spec")

    def describe_difference(self, other: "ModelSpec") -> str:
        """The first thing that makes the two networks different, or "" where weights fit both (names may differ)."""
        for key in ("embed_dim", "quick_gelu", "vision", "text", "decoder"):
            mine, theirs = getattr(self, key), getattr(other, key)
            if mine == theirs:
                continue
            if not dataclasses.is_dataclass(mine) or type(mine) is not type(theirs):
                return f"{key} {mine} against {theirs}"
            names = [f.name for f in dataclasses.fields(mine) if getattr(mine, f.name) != getattr(theirs, f.name)]
            return f"{key}.{names[0]} {getattr(mine, names[0])} against {getattr(theirs, names[0])}"
        return ""
