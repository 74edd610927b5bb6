"""The configs of towers: what all kinds have in common, and the registries of the kinds."""

import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from clip_core.config import Variant
from clip_core.registry import Registry
from clip_models.errors import ClipModelsError
from clip_models.specs.values import check_fields, require_divides

IMAGE_TOWERS: Registry[Any] = Registry(
    "image tower",
    {
        "vit": "clip_models.specs.vision:ViTConfig",
        "resnet": "clip_models.specs.vision:ResNetConfig",
        "timm": "clip_models.specs.vision:TimmConfig",
    },
)
TEXT_TOWERS: Registry[Any] = Registry(
    "text tower",
    {
        "clip": "clip_models.specs.text:CLIPTextConfig",
        "modern": "clip_models.specs.modern_text:ModernTextConfig",
        "hf": "clip_models.specs.text:HFTextConfig",
    },
)


def as_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) of a size that may be one number for both."""
    return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True, kw_only=True)
class TowerConfig(Variant):
    """Base of the configs of towers. Errors of a config are raised by its `__post_init__`."""

    TOWER: ClassVar[str]
    """`module:class` of the tower, imported when one is built: a `clip_models.towers.common.Tower`."""

    def build(self, embed_dim: int, quick_gelu: bool = False) -> Any:
        """Returns the tower with random weights. Raises ClipModelsError if it needs an extra that is missing."""
        return pkgutil.resolve_name(self.TOWER)(self, embed_dim, quick_gelu)


@dataclass(frozen=True, kw_only=True)
class TransformerSizes:
    """The sizes of a transformer."""

    width: int = 512
    """Channels of the residual stream."""
    heads: int = 8
    """Attention heads; divides width."""
    layers: int = 12
    """Number of blocks."""
    mlp_ratio: float = 4.0
    """Hidden channels of the MLP over width."""

    def check_sizes(self, where: str, *more: str) -> None:
        """Raises ClipModelsError for sizes, and further fields `more`, that are not positive; checks choices too."""
        check_fields(self, f"{where}.", "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", *more)
        require_divides(where, self.width, self.heads, "width", "heads")


@dataclass(frozen=True, kw_only=True)
class VisionConfig(TowerConfig):
    """Base of the kinds of image tower. The tower maps float [B, 3, H, W] to [B, embed_dim]."""

    KINDS = IMAGE_TOWERS
    DEFAULT = "vit"

    image_size: int | tuple[int, int] = 224
    """Side of the square input in pixels, or (height, width)."""


@dataclass(frozen=True, kw_only=True)
class TextConfig(TowerConfig):
    """Base of the kinds of text tower. The tower maps int64 [B, L] to [B, embed_dim].

    A kind also has `vocab_size`, `width` (channels of its tokens) and `pad_id`, as fields or as properties.
    """

    KINDS = TEXT_TOWERS
    DEFAULT = "clip"

    context_length: int = 77
    """Longest input in tokens, start and end included."""
    output_tokens: bool = False
    """Return all tokens beside the pooled vector."""

    @property
    def spare_columns(self) -> str:
        """Which columns at the right of a batch of token ids change no feature and may be cut off.

        after_pooled: those after the pooled token of every caption. padding: those that hold padding only. none.
        """
        return "none"

    def check_width(self, embed_dim: int) -> None:
        """Raises ClipModelsError if the features are not projected and have another width than the embedding."""
        if getattr(self, "proj_type", "") == "none" and self.width != embed_dim:
            raise ClipModelsError(f"text.proj_type none needs text.width {self.width} to be embed_dim {embed_dim}")

    if TYPE_CHECKING:

        @property
        def vocab_size(self) -> int: ...
        @property
        def width(self) -> int: ...
        @property
        def pad_id(self) -> int | None: ...
