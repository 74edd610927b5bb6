"""The kinds of text tower, and CoCa's decoder. Field names are OpenCLIP's `text_cfg` keys where it has them."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from clip_models.errors import ClipModelsError
from clip_models.specs.tokenizer import CLIP_BPE_VOCAB_SIZE
from clip_models.specs.tower import TextConfig, TransformerSizes
from clip_models.specs.values import check_fields, require_token_ids


@dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(TransformerSizes, TextConfig):
    """CLIP's text transformer, with the options of CLIPA, SigLIP, MetaCLIP 2 and CoCa."""

    TOWER = "clip_models.towers.text.clip:TextTransformer"

    vocab_size: int = CLIP_BPE_VOCAB_SIZE
    """Rows of the token embedding."""
    ls_init_value: float | None = None
    """Initial value of LayerScale; None is none."""
    embed_cls: bool = False
    """Append a learned class token, which is then pooled (CoCa)."""
    pad_id: int = 0
    """Id of the padding."""
    eos_id: int | None = None
    """Id of the end token; needed by pool_type eos."""
    no_causal_mask: bool = False
    """Let every token attend to all, to the right too."""
    final_ln_after_pool: bool = False
    """Apply the last LayerNorm to the pooled vector, not to the tokens."""
    pool_type: Literal["argmax", "eos", "first", "last", "none"] = "argmax"
    """argmax: the token of the highest id. eos: the first eos_id. first, last: that position. none: all tokens."""
    proj_bias: bool = False
    """Give the projection a bias; it is then a linear layer and not a matrix."""
    proj_type: Literal["linear", "none"] = "linear"
    """linear, or none: no projection."""
    norm_eps: float = 1e-5
    """Epsilon of the LayerNorms."""
    gelu_tanh: bool = False
    """GELU by its tanh approximation."""

    def __post_init__(self) -> None:
        self.check_sizes("text", "norm_eps")
        if self.context_length < 3:
            raise ClipModelsError(f"text.context_length {self.context_length} has no room for start, a token and end")
        if self.pool_type == "eos" and self.eos_id is None:
            raise ClipModelsError("text.pool_type eos needs text.eos_id, the tokenizer's end token")
        require_token_ids(self, "pad_id", "eos_id")
        if self.proj_bias and self.proj_type == "none":
            raise ClipModelsError("text.proj_bias has no effect with text.proj_type none; leave it out")

    @property
    def spare_columns(self) -> str:
        alone = not (self.no_causal_mask or self.embed_cls or self.output_tokens)
        return "after_pooled" if alone and self.pool_type in ("argmax", "eos") else "none"


@dataclass(frozen=True, kw_only=True)
class HFTextConfig(TextConfig):
    """An encoder of the transformers library with a pooler and a projection. Needs the extra `hf`."""

    TOWER = "clip_models.towers.text.hf:HFTextTower"

    model_name: str
    """Id of the model on the hub; names where default weights and the tokenizer come from."""
    config: dict[str, Any] = field(hash=False)
    """The model's configuration as transformers writes it, `model_type` included, so that nothing is downloaded."""
    pooler_type: Literal["mean_pooler", "max_pooler", "cls_pooler", "cls_last_hidden_state_pooler"] = "mean_pooler"
    """mean_pooler, max_pooler, cls_pooler (the model's own where it has one) or cls_last_hidden_state_pooler."""
    proj_type: Literal["linear", "mlp", "none"] = "mlp"
    """linear, mlp (hidden width halfway between), or none where the widths agree."""

    def __post_init__(self) -> None:
        check_fields(self, "text.", "context_length")
        if not self.model_name:
            raise ClipModelsError("text.model_name is empty; name the model on the hub")
        for key in ("model_type", "vocab_size", "d_model" if "d_model" in self.config else "hidden_size"):
            if key not in self.config:
                raise ClipModelsError(f"text.config of {self.model_name!r} lacks the key {key!r}")

    @property
    def vocab_size(self) -> int:
        return int(self.config["vocab_size"])

    @property
    def pad_id(self) -> int | None:
        """Id of the padding; None if the configuration does not set it."""
        return self.config.get("pad_token_id")

    @property
    def spare_columns(self) -> str:
        return "none" if self.output_tokens or self.pad_id is None else "padding"

    @property
    def width(self) -> int:
        """Channels of the encoder's tokens."""
        return int(self.config.get("d_model") or self.config["hidden_size"])


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(TransformerSizes):
    """CoCa's multimodal decoder: causal self-attention, and cross-attention to the image tokens after each block."""

    context_length: int = 76
    """Longest input in tokens."""
    vocab_size: int = CLIP_BPE_VOCAB_SIZE
    """Classes of the output."""
    # The rest of what a block takes is fixed in OpenCLIP.
    norm_eps: ClassVar[float] = 1e-5
    gelu_tanh: ClassVar[bool] = False
    ls_init_value: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        self.check_sizes("decoder")
