"""The kinds of image tower. Field names are OpenCLIP's `vision_cfg` keys where it has them."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from clip_models.errors import ClipModelsError
from clip_models.specs.plain import require_choice, require_divides, require_positive


def as_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size that may be one number for both."""
    return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """CLIP's own vision transformer."""

    kind_of_config: ClassVar[str] = "vit"

    image_size: int | tuple[int, int] = 224
    """Side of the square input in pixels, or (height, width)."""
    patch_size: int = 16
    """Side of a patch, in pixels. A border that is narrower than a patch is not looked at, as in OpenCLIP."""
    width: int = 768
    """Channels of the residual stream."""
    layers: int = 12
    """Number of blocks."""
    head_width: int = 64
    """Channels of one attention head; divides width."""
    mlp_ratio: float = 4.0
    """Hidden channels of the MLP over width."""
    ls_init_value: float | None = None
    """Initial value of LayerScale; None is none."""
    patch_dropout: float = 0.0
    """Share of the patches that is left out in training; 0 ≤ … < 1."""
    attentional_pool: bool = False
    """Pool by cross-attention of learned queries (CoCa) in place of pool_type."""
    attn_pooler_queries: int = 256
    """Queries of the attentional pooler."""
    attn_pooler_heads: int = 8
    """Heads of the attentional pooler."""
    no_ln_pre: bool = False
    """Leave out the LayerNorm before the first block."""
    pos_embed_type: str = "learnable"
    """learnable, or sin_cos_2d: fixed."""
    final_ln_after_pool: bool = False
    """Apply the last LayerNorm to the pooled vector, not to the tokens."""
    pool_type: str = "tok"
    """tok: the class token. avg: mean of the patches. none: all tokens."""
    output_tokens: bool = False
    """Return the patch tokens beside the pooled vector."""
    norm_eps: float = 1e-5
    """Epsilon of the LayerNorms."""
    gelu_tanh: bool = False
    """GELU by its tanh approximation."""

    def __post_init__(self) -> None:
        require_positive(
            self, "vision", "image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio",
            "attn_pooler_queries", "attn_pooler_heads", "norm_eps",
        )  # fmt: skip
        if min(as_pair(self.image_size)) < self.patch_size:
            raise ClipModelsError(
                f"vision.image_size {self.image_size} is less than one patch of {self.patch_size} pixels"
            )
        require_divides("vision", self.width, self.head_width, "width", "head_width")
        require_choice("vision.pos_embed_type", self.pos_embed_type, ("learnable", "sin_cos_2d"))
        require_choice("vision.pool_type", self.pool_type, ("tok", "avg", "none"))
        if self.pos_embed_type == "sin_cos_2d" and self.width % 4:
            raise ClipModelsError(f"vision.pos_embed_type sin_cos_2d needs vision.width {self.width} to divide by 4")
        _require_share("patch_dropout", self.patch_dropout)

    @property
    def heads(self) -> int:
        return self.width // self.head_width

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        height, width = as_pair(self.image_size)
        return height // self.patch_size, width // self.patch_size


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """OpenAI's modified ResNet: three-convolution stem, antialiased strides, attention pooling."""

    kind_of_config: ClassVar[str] = "resnet"

    image_size: int | tuple[int, int] = 224
    """Side of the square input in pixels, or (height, width)."""
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Blocks of the four stages."""
    width: int = 64
    """Channels of the first stage."""
    head_width: int = 64
    """Channels of one head of the attention pooling, whose width is 32 · width."""

    def __post_init__(self) -> None:
        require_positive(self, "vision", "image_size", "layers", "width", "head_width")
        require_divides("vision", self.width * 32, self.head_width, "width · 32 =", "head_width")
        if min(as_pair(self.image_size)) < 32:
            raise ClipModelsError(f"vision.image_size {self.image_size} is less than a ResNet's stride of 32 pixels")

    @property
    def heads(self) -> int:
        return self.width * 32 // self.head_width


@dataclass(frozen=True, kw_only=True)
class TimmConfig:
    """A trunk of the timm library and the head that OpenCLIP puts on it. Needs the extra `timm`."""

    kind_of_config: ClassVar[str] = "timm"

    model_name: str
    """timm's name of the trunk."""
    image_size: int | tuple[int, int] = 224
    """Side of the square input in pixels, or (height, width)."""
    pool: str = "avg"
    """timm's global_pool; "" is the trunk's own; abs_attn, rot_attn: timm's attention pooling in the head."""
    proj: str = "linear"
    """linear, mlp, none; "" lets the trunk's classifier do it."""
    proj_bias: bool = False
    """Give a linear projection a bias."""
    drop: float = 0.0
    """Dropout of the head."""
    drop_path: float | None = None
    """Stochastic depth of the trunk; None is the trunk's own."""
    patch_dropout: float = 0.0
    """Share of the patches that is left out in training, for trunks that can."""
    model_kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    """Arguments for timm.create_model that make the trunk another one than its name says: depth, embed_dim, …"""

    def __post_init__(self) -> None:
        require_positive(self, "vision", "image_size")
        require_choice("vision.proj", self.proj, ("linear", "mlp", "none", ""))
        if not self.model_name:
            raise ClipModelsError("vision.model_name is empty; name a model of timm")
        if self.proj_bias and self.proj in ("", "none"):
            raise ClipModelsError(f"vision.proj_bias has no effect with vision.proj {self.proj!r}; leave it out")
        _require_share("patch_dropout", self.patch_dropout)
        _require_share("drop", self.drop)
        _require_share("drop_path", self.drop_path or 0.0)


def _require_share(name: str, share: float) -> None:
    if not 0 <= share < 1:
        raise ClipModelsError(f"vision.{name} {share} must be a share, 0 <= share < 1")


VisionConfig = ViTConfig | ResNetConfig | TimmConfig
"""What `ModelSpec.vision` may be; `kind` in plain data: vit, resnet, timm."""
