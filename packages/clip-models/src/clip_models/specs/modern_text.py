"""The modern text tower: rotary positions, gated linear units, RMSNorm. Field names are OpenCLIP's `text_cfg` keys."""

from dataclasses import dataclass
from typing import Literal

from clip_models.errors import ClipModelsError
from clip_models.specs.tower import TextConfig, TransformerSizes
from clip_models.specs.values import require_token_ids


@dataclass(frozen=True, kw_only=True)
class ModernTextConfig(TransformerSizes, TextConfig):
    """A text transformer of current design for captions of any length (OpenCLIP's `text_arch: "modern"`)."""

    TOWER = "clip_models.towers.text.modern:ModernTextTransformer"

    eos_id: int | None = None
    """Id of the end token; needed by pool_type eos."""
    context_length: int = 256
    """Longest input in tokens, start and end included. Shorter batches cost less and give the same features."""
    vocab_size: int = 50260
    """Rows of the token embedding."""
    pad_id: int = 0
    """Id of the padding, which is to the right of a caption and is never attended to."""
    bos_id: int | None = None
    """Id of the start token; what the tokenizer puts first."""
    attention_mode: Literal["causal", "bidirectional"] = "causal"
    """causal: a token attends to itself and those to its left. bidirectional: to the whole caption."""
    pos_embed: Literal["rope", "none"] = "rope"
    """rope: rotary. none: no positions."""
    rope_temperature: float = 10000.0
    """Base of the rotary frequencies."""
    mlp_type: Literal["swiglu", "mlp", "relu2"] = "swiglu"
    """swiglu; mlp: GELU; relu2: squared ReLU."""
    norm_type: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """rmsnorm or layernorm."""
    norm_eps: float = 1e-6
    """Epsilon of the norms."""
    norm_placement: Literal["pre", "sandwich"] = "pre"
    """pre: before attention and MLP. sandwich: after them too."""
    pre_norm: bool = False
    """Normalize the embeddings before the first block."""
    qk_norm: bool = False
    """Normalize queries and keys in every head."""
    attn_gated: bool = False
    """Multiply the output of attention by a sigmoid gate of its input."""
    attention_bias: bool = False
    """Biases in the linear layers of attention, of the gate and of the pooling."""
    gate_bias: bool | None = None
    """Bias of the gate; None does as attention_bias."""
    mlp_bias: bool = False
    """Biases in the MLP."""
    reg_tokens: int = 0
    """Learned tokens in front of the caption, left out of the pooling."""
    value_residual: bool = False
    """Mix the values of every later block with those of the first, by a learned scalar."""
    ls_init_value: float | None = None
    """Initial value of LayerScale; None is none."""
    zero_init_residual: bool = False
    """Start with blocks that change nothing: the last matrix of attention and MLP is zero."""
    pool_type: Literal["eos", "mean", "map"] = "eos"
    """eos: the first eos_id, or the last token where a caption lost it. mean: of the caption's tokens. map: attention
    of a learned query to them."""
    proj_type: Literal["linear", "none"] = "linear"
    """linear, or none: no projection."""
    proj_bias: bool = False
    """Give the projection a bias."""

    def __post_init__(self) -> None:
        self.check_sizes("text", "norm_eps", "rope_temperature")
        if self.pos_embed == "rope" and self.head_width % 2:
            raise ClipModelsError(f"text.pos_embed rope needs an even width / heads, not {self.head_width}")
        if self.pool_type == "eos" and self.eos_id is None:
            raise ClipModelsError("text.pool_type eos needs text.eos_id, the tokenizer's end token")
        if self.reg_tokens < 0:
            raise ClipModelsError(f"text.reg_tokens {self.reg_tokens} must not be negative")
        require_token_ids(self, "pad_id", "eos_id", "bos_id")

    @property
    def spare_columns(self) -> str:
        return "none" if self.output_tokens else "padding"

    @property
    def head_width(self) -> int:
        return self.width // self.heads
