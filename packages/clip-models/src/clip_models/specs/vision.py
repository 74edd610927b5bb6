"""The kinds of image tower. Field names are OpenCLIP's `vision_cfg` keys where it has them."""

from dataclasses import dataclass, field
from typing import Any, Literal

from clip_models.errors import ClipModelsError
from clip_models.specs.tower import VisionConfig, as_pair
from clip_models.specs.values import check_fields, require_divides


@dataclass(frozen=True, kw_only=True)
class ViTConfig(VisionConfig):
    """CLIP's own vision transformer."""

    TOWER = "clip_models.towers.image.vit:VisionTransformer"

    patch_size: int = 16
    """Side of a patch, in pixels. A border that is narrower than a patch is ignored, as in OpenCLIP."""
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
    """Pool by cross-attention of learned queries (CoCa) instead of pool_type."""
    attn_pooler_queries: int = 256
    """Queries of the attentional pooler."""
    attn_pooler_heads: int = 8
    """Heads of the attentional pooler."""
    no_ln_pre: bool = False
    """Leave out the LayerNorm before the first block."""
    pos_embed_type: Literal["learnable", "sin_cos_2d"] = "learnable"
    """learnable, or sin_cos_2d: fixed."""
    final_ln_after_pool: bool = False
    """Apply the last LayerNorm to the pooled vector, not to the tokens."""
    pool_type: Literal["tok", "avg", "none"] = "tok"
    """tok: the class token. avg: mean of the patches. none: all tokens."""
    output_tokens: bool = False
    """Return the patch tokens beside the pooled vector."""
    norm_eps: float = 1e-5
    """Epsilon of the LayerNorms."""
    gelu_tanh: bool = False
    """GELU by its tanh approximation."""

    def __post_init__(self) -> None:
        check_fields(
            self, "vision.", "image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio",
            "attn_pooler_queries", "attn_pooler_heads", "norm_eps",
        )  # fmt: skip
        if min(as_pair(self.image_size)) < self.patch_size:
            raise ClipModelsError(
                f"vision.image_size {self.image_size} is less than one patch of {self.patch_size} pixels"
            )
        require_divides("vision", self.width, self.head_width, "width", "head_width")
        if self.pos_embed_type == "sin_cos_2d" and self.width % 4:
            raise ClipModelsError(f"vision.pos_embed_type sin_cos_2d needs vision.width {self.width} to divide by 4")
        _require_shares(patch_dropout=self.patch_dropout)

    @property
    def heads(self) -> int:
        return self.width // self.head_width

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        height, width = as_pair(self.image_size)
        return height // self.patch_size, width // self.patch_size


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(VisionConfig):
    """OpenAI's modified ResNet: three-convolution stem, antialiased strides, attention pooling."""

    TOWER = "clip_models.towers.image.resnet:ModifiedResNet"

    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Blocks of the four stages."""
    width: int = 64
    """Channels of the first stage."""
    head_width: int = 64
    """Channels of one head of the attention pooling, whose width is 32 · width."""

    def __post_init__(self) -> None:
        check_fields(self, "vision.", "image_size", "layers", "width", "head_width")
        require_divides("vision", self.width * 32, self.head_width, "width · 32 =", "head_width")
        if min(as_pair(self.image_size)) < 32:
            raise ClipModelsError(f"vision.image_size {self.image_size} is less than a ResNet's stride of 32 pixels")

    @property
    def heads(self) -> int:
        return self.width * 32 // self.head_width


@dataclass(frozen=True, kw_only=True)
class TimmConfig(VisionConfig):
    """A trunk of the timm library and the head that OpenCLIP puts on it. Needs the extra `timm`."""

    TOWER = "clip_models.towers.image.timm:TimmTower"

    model_name: str
    """timm's name of the trunk."""
    pool: str = "avg"
    """timm's global_pool; "" is the trunk's own; abs_attn, rot_attn: timm's attention pooling in the head."""
    proj: Literal["linear", "mlp", "none", ""] = "linear"
    """linear, mlp, none; "" uses the trunk's classifier."""
    proj_bias: bool = False
    """Give a linear projection a bias."""
    drop: float = 0.0
    """Dropout of the head."""
    drop_path: float | None = None
    """Stochastic depth of the trunk; None is the trunk's own."""
    patch_dropout: float = 0.0
    """Share of the patches that is left out in training, for trunks that can."""
    model_kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    """Arguments for timm.create_model that change the named trunk: depth, embed_dim, …"""

    def __post_init__(self) -> None:
        check_fields(self, "vision.", "image_size")
        if not self.model_name:
            raise ClipModelsError("vision.model_name is empty; name a model of timm")
        if self.proj_bias and self.proj in ("", "none"):
            raise ClipModelsError(f"vision.proj_bias has no effect with vision.proj {self.proj!r}; leave it out")
        _require_shares(patch_dropout=self.patch_dropout, drop=self.drop, drop_path=self.drop_path or 0.0)


def _require_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ClipModelsError(f"vision.{name} {share} must be a share, 0 <= share < 1")
