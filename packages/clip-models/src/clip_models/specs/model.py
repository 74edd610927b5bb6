"""ModelSpec: a dual encoder as data, and checks that its parts fit each other.

Each part checks itself where it is defined.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from clip_models.errors import ClipModelsError
from clip_models.specs.modern_text import ModernTextConfig
from clip_models.specs.preprocess import PreprocessConfig
from clip_models.specs.text import CLIPTextConfig, DecoderConfig, HFTextConfig
from clip_models.specs.tokenizer import TokenizerConfig
from clip_models.specs.tower import TextConfig, VisionConfig, as_pair
from clip_models.specs.values import PlainData
from clip_models.specs.vision import ViTConfig

_CLIP_BPE_END = 49407


@dataclass(frozen=True, kw_only=True)
class ModelSpec(PlainData):
    """What is needed to build a dual encoder and to prepare its inputs; saved with the weights."""

    WHERE = "model spec"

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
        _check_spec(self)

    @property
    def text_at_root(self) -> bool:
        """Whether the text tower's tensors are at the root of the model, as in OpenAI's weights."""
        return isinstance(self.text, CLIPTextConfig) and not self.custom_text and self.decoder is None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads a spec from plain types. Raises ClipModelsError for unknown keys, wrong types and impossible sizes.

        Without `preprocess.size` the preprocessing takes the size of the image tower.
        """
        vision, preprocess = data.get("vision"), data.get("preprocess", {})
        if isinstance(vision, Mapping) and isinstance(preprocess, Mapping):
            size = vision.get("image_size", VisionConfig.image_size)
            data = {**data, "preprocess": {"size": as_pair(size), **preprocess}}
        return super().from_dict(data)

    def describe_difference(self, other: ModelSpec) -> str:
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


def _check_spec(spec: ModelSpec) -> None:
    """Raises ClipModelsError for the first combination that is impossible or would have no effect."""
    _check_embedding(spec)
    _check_activation(spec)
    _check_tokenizer(spec)
    if spec.decoder is not None:
        _check_decoder(spec)


def _check_embedding(spec: ModelSpec) -> None:
    size = as_pair(spec.vision.image_size)
    if spec.preprocess.size != size:
        raise ClipModelsError(
            f"preprocess.size {list(spec.preprocess.size)} is not the input of the image tower, {list(size)};"
            " change it together with vision.image_size"
        )
    vision = spec.vision
    if isinstance(vision, ViTConfig) and vision.attentional_pool and spec.embed_dim % vision.attn_pooler_heads:
        raise ClipModelsError(
            f"embed_dim {spec.embed_dim} is not a multiple of vision.attn_pooler_heads {vision.attn_pooler_heads}"
        )
    spec.text.check_width(spec.embed_dim)


def _check_activation(spec: ModelSpec) -> None:
    if not spec.quick_gelu:
        return
    native = [tower for tower in (spec.vision, spec.text) if isinstance(tower, ViTConfig | CLIPTextConfig)]
    if not native and spec.decoder is None:
        raise ClipModelsError(
            f"quick_gelu has no effect on a {spec.vision.kind} image tower and a {spec.text.kind}"
            " text tower; leave it out"
        )
    if any(tower.gelu_tanh for tower in native):
        raise ClipModelsError("quick_gelu and gelu_tanh are different activations; choose one")


def _check_tokenizer(spec: ModelSpec) -> None:
    tokenizer, text = spec.tokenizer, spec.text
    ids = tokenizer.known_ids
    if ids is not None and text.vocab_size < ids:
        raise ClipModelsError(f"text.vocab_size {text.vocab_size} is less than the tokenizer's {ids} ids")
    if tokenizer.kind == "tiktoken":
        if not isinstance(text, ModernTextConfig) or text.eos_id is None:
            raise ClipModelsError(
                "a tiktoken tokenizer takes the ids of start, end and padding from a modern text tower with eos_id"
            )
        specials = [token for token in (text.eos_id, text.pad_id, text.bos_id) if token is not None]
        if len(set(specials)) < len(specials) or (ids is not None and min(specials) < ids):
            raise ClipModelsError(
                f"text.eos_id, pad_id and bos_id {specials} must differ and be above the ids of {tokenizer.name!r}"
            )
    if not isinstance(text, CLIPTextConfig) or text.embed_cls:
        return
    if tokenizer.kind == "sentencepiece" and text.pool_type == "argmax":
        raise ClipModelsError(
            "text.pool_type argmax takes the token of the highest id, which is the end in clip-bpe but not in"
            " sentencepiece; choose last, or eos with text.eos_id"
        )
    if tokenizer.kind == "clip-bpe" and text.pool_type == "eos" and text.eos_id != _CLIP_BPE_END:
        raise ClipModelsError(f"text.eos_id {text.eos_id} is not the end of the clip-bpe tokenizer, {_CLIP_BPE_END}")


def _check_decoder(spec: ModelSpec) -> None:
    assert spec.decoder is not None
    vision, text, width = spec.vision, spec.text, spec.decoder.width
    if not isinstance(vision, ViTConfig):
        raise ClipModelsError(f"a decoder needs the tokens of a vit image tower, not of a {vision.kind} one")
    for name, tower in (("vision", vision), ("text", text)):
        if not tower.output_tokens:
            raise ClipModelsError(f"a decoder needs {name}.output_tokens = true")
    tokens = spec.embed_dim if vision.attentional_pool else vision.width
    if tokens != width:
        source = "embed_dim" if vision.attentional_pool else "vision.width"
        raise ClipModelsError(f"decoder.width {width} is not the width of the image tokens, {source} {tokens}")
    if text.width != width:
        raise ClipModelsError(f"decoder.width {width} is not text.width {text.width}")
    if not isinstance(text, HFTextConfig) and spec.decoder.vocab_size != text.vocab_size:
        raise ClipModelsError(f"decoder.vocab_size {spec.decoder.vocab_size} is not text.vocab_size {text.vocab_size}")
