"""What happens to pictures and captions before the towers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from clip_models.errors import ClipModelsError
from clip_models.specs.plain import from_plain, require_choice, to_plain

OPENAI_DATASET_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_DATASET_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_BPE_VOCAB_SIZE = 49408

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
class PreprocessConfig:
    """What happens to a picture before the tower: the keys of OpenCLIP's preprocess_cfg."""

    size: tuple[int, int] = (224, 224)
    """Height and width of the result, in pixels."""
    mode: str = "RGB"
    """Pillow mode of the result; RGB is the only one."""
    mean: tuple[float, float, float] = OPENAI_DATASET_MEAN
    """Subtracted per channel, on the scale 0 to 1."""
    std: tuple[float, float, float] = OPENAI_DATASET_STD
    """Divides per channel, on the scale 0 to 1."""
    interpolation: str = "bicubic"
    """bicubic or bilinear, always antialiased."""
    resize_mode: str = "shortest"
    """shortest: fit the short side, crop the centre. longest: fit the long side, pad. squash: ignore the aspect."""
    fill_color: int = 0
    """Value of the padding that resize_mode longest adds, 0 to 255."""

    def __post_init__(self) -> None:
        if min(self.size) <= 0:
            raise ClipModelsError(f"preprocess.size {list(self.size)} must be positive")
        require_choice("preprocess.mode", self.mode, ("RGB",))
        require_choice("preprocess.interpolation", self.interpolation, ("bicubic", "bilinear"))
        require_choice("preprocess.resize_mode", self.resize_mode, ("shortest", "longest", "squash"))
        if min(self.std) <= 0:
            raise ClipModelsError(f"preprocess.std {list(self.std)} must be positive")
        if not 0 <= self.fill_color <= 255:
            raise ClipModelsError(f"preprocess.fill_color {self.fill_color} is outside 0 to 255")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the treatment that a sample stream takes, without its "augment" key."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return from_plain(cls, data, "preprocess")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How captions become token ids."""

    kind: str = "clip-bpe"
    """clip-bpe: CLIP's 49,408 tokens. hf: a tokenizer of the transformers library. sentencepiece: a model file.
    tiktoken: one of its encodings, with start, end and padding above its vocabulary."""
    name: str = ""
    """hf: id on the hub or a folder. sentencepiece: c4-en, mc4, gemma or a file. tiktoken: name of the encoding."""
    clean: str = ""
    """lower, whitespace (keeps the case), whitespace_underscore or canonicalize (lower case without punctuation);
    "" is the kind's own: lower for clip-bpe, canonicalize for sentencepiece, whitespace for the others."""
    strip_sep_token: bool = False
    """hf: turn the separator that ends a caption into padding (CLIPA)."""
    language: str = ""
    """hf: language of the captions, for tokenizers that mark it (NLLB)."""
    mode: str = ""
    """hf: "" or clips, start and end as CLIPS puts them."""
    reduction: str = ""
    """clip-bpe: how a long caption is shortened: "" cuts its tail; simple, random, shuffle, syntax are CLIPA's."""

    def __post_init__(self) -> None:
        require_choice("tokenizer.kind", self.kind, ("clip-bpe", "hf", "sentencepiece", "tiktoken"))
        require_choice(
            "tokenizer.clean", self.clean, ("", "lower", "whitespace", "whitespace_underscore", "canonicalize")
        )
        require_choice("tokenizer.mode", self.mode, ("", "clips"))
        require_choice("tokenizer.reduction", self.reduction, ("", "simple", "random", "shuffle", "syntax"))
        if (self.kind == "clip-bpe") != (self.name == ""):
            raise ClipModelsError(f"tokenizer.name {self.name!r} does not go with tokenizer.kind {self.kind!r}")
        for key, kind in (("strip_sep_token", "hf"), ("language", "hf"), ("mode", "hf"), ("reduction", "clip-bpe")):
            if getattr(self, key) and self.kind != kind:
                raise ClipModelsError(f"tokenizer.{key} is for the kind {kind}, not for {self.kind!r}")

    @property
    def known_ids(self) -> int | None:
        """How many token ids there are at least, where that is known without loading the tokenizer."""
        return _KNOWN_IDS.get((self.kind, self.name))
