"""TokenizerConfig: how captions become token ids."""

from dataclasses import dataclass
from typing import Any, Literal

from clip_core import ClipError, Registry
from clip_models.errors import ClipModelsError
from clip_models.specs.values import check_fields

CLIP_BPE_VOCAB_SIZE = 49408
TOKENIZERS: Registry[Any] = Registry(
    "tokenizer",
    {
        "clip-bpe": "clip_models.tokenizers.clip_bpe:ClipTokenizer",
        "hf": "clip_models.tokenizers.hf:HFTokenizer",
        "sentencepiece": "clip_models.tokenizers.sentencepiece:SigLipTokenizer",
        "tiktoken": "clip_models.tokenizers.tiktoken:TikTokenTokenizer",
    },
)
"""Subclasses of `clip_models.tokenizers.base.Tokenizer` by kind."""

_KNOWN_IDS = {
    ("clip-bpe", ""): CLIP_BPE_VOCAB_SIZE,
    ("sentencepiece", "c4-en"): 32000,
    ("sentencepiece", "mc4"): 250000,
    ("sentencepiece", "gemma"): 256000,
    ("tiktoken", "r50k_base"): 50257,
    ("tiktoken", "cl100k_base"): 100277,
    ("tiktoken", "o200k_base"): 200019,
}


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How captions become token ids."""

    kind: str = "clip-bpe"
    """clip-bpe: CLIP's 49,408 tokens. hf: a tokenizer of the transformers library. sentencepiece: a model file.
    tiktoken: one of its encodings, with start, end and padding above its vocabulary. module:class: user-defined."""
    name: str = ""
    """hf: id on the hub or a folder. sentencepiece: c4-en, mc4, gemma or a file. tiktoken: name of the encoding."""
    clean: Literal["", "lower", "whitespace", "whitespace_underscore", "canonicalize"] = ""
    """lower, whitespace (keeps the case), whitespace_underscore or canonicalize (lower case without punctuation);
    "" is the kind's own: lower for clip-bpe, canonicalize for sentencepiece, whitespace for the others."""
    strip_sep_token: bool = False
    """hf: turn the separator that ends a caption into padding (CLIPA)."""
    language: str = ""
    """hf: language of the captions, for tokenizers that mark it (NLLB)."""
    mode: Literal["", "clips"] = ""
    """hf: "" or clips, start and end as CLIPS puts them."""
    reduction: Literal["", "simple", "random", "shuffle", "syntax"] = ""
    """clip-bpe: how a long caption is shortened: "" cuts its tail; simple, random, shuffle, syntax are CLIPA's."""

    def __post_init__(self) -> None:
        try:
            TOKENIZERS.check(self.kind)
        except ClipError as error:
            raise ClipModelsError(f"tokenizer.kind: {error}") from error
        check_fields(self, "tokenizer.")
        needs_name = {"clip-bpe": False, "hf": True, "sentencepiece": True, "tiktoken": True}
        if needs_name.get(self.kind, bool(self.name)) != bool(self.name):
            raise ClipModelsError(f"tokenizer.name {self.name!r} does not go with tokenizer.kind {self.kind!r}")
        for key, kind in (("strip_sep_token", "hf"), ("language", "hf"), ("mode", "hf"), ("reduction", "clip-bpe")):
            if getattr(self, key) and self.kind != kind:
                raise ClipModelsError(f"tokenizer.{key} is for the kind {kind}, not for {self.kind!r}")

    @property
    def known_ids(self) -> int | None:
        """The least number of token ids, if it is known without loading the tokenizer."""
        return _KNOWN_IDS.get((self.kind, self.name))
