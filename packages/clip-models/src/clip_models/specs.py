"""Architectures as data: frozen specs, and the table of the ones that have a name.

Free of torch. The table is data/models.toml; names and numbers are OpenCLIP's.
"""

import dataclasses
import functools
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.resources import files
from typing import Any, Self

from clip_models.errors import ClipModelsError

CLIP_BPE_VOCAB_SIZE = 49408
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A ViT tower: class token, learned positions, LayerNorm before the first block, class-token pooling."""

    image_size: int = 224
    """Side of the square input, in pixels."""
    patch_size: int = 16
    """Side of a patch, in pixels; divides image_size."""
    width: int = 768
    """Channels of the residual stream."""
    layers: int = 12
    """Number of blocks."""
    head_width: int = 64
    """Channels of one attention head; divides width."""
    mlp_ratio: float = 4.0
    """Hidden channels of the MLP over width."""

    def __post_init__(self) -> None:
        _require_positive(self, "vision")
        if self.image_size % self.patch_size:
            raise ClipModelsError(
                f"vision.image_size {self.image_size} is not a multiple of vision.patch_size {self.patch_size}"
            )
        if self.width % self.head_width:
            raise ClipModelsError(f"vision.width {self.width} is not a multiple of vision.head_width {self.head_width}")

    @property
    def heads(self) -> int:
        return self.width // self.head_width


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A causal text transformer that is pooled at the end-of-text token."""

    context_length: int = 77
    """Longest input in tokens, start and end included."""
    vocab_size: int = CLIP_BPE_VOCAB_SIZE
    """Rows of the token embedding."""
    width: int = 512
    """Channels of the residual stream."""
    heads: int = 8
    """Attention heads; divides width."""
    layers: int = 12
    """Number of blocks."""
    mlp_ratio: float = 4.0
    """Hidden channels of the MLP over width."""

    def __post_init__(self) -> None:
        _require_positive(self, "text")
        if self.width % self.heads:
            raise ClipModelsError(f"text.width {self.width} is not a multiple of text.heads {self.heads}")
        if self.context_length < 3:
            raise ClipModelsError(f"text.context_length {self.context_length} has no room for start, a token and end")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """What happens to a picture before the tower: the keys of OpenCLIP's preprocess_cfg."""

    size: tuple[int, int] = (224, 224)
    """Height and width of the result, in pixels."""
    mode: str = "RGB"
    """Pillow mode of the result; RGB is the only one."""
    mean: tuple[float, float, float] = OPENAI_MEAN
    """Subtracted per channel, on the scale 0 to 1."""
    std: tuple[float, float, float] = OPENAI_STD
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
        _require_choice("preprocess.mode", self.mode, ("RGB",))
        _require_choice("preprocess.interpolation", self.interpolation, ("bicubic", "bilinear"))
        _require_choice("preprocess.resize_mode", self.resize_mode, ("shortest", "longest", "squash"))
        if min(self.std) <= 0:
            raise ClipModelsError(f"preprocess.std {list(self.std)} must be positive")
        if not 0 <= self.fill_color <= 255:
            raise ClipModelsError(f"preprocess.fill_color {self.fill_color} is outside 0 to 255")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the treatment that a sample stream takes, without its "augment" key."""
        return _to_plain(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return _from_plain(cls, data, "preprocess")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How captions become token ids."""

    kind: str = "clip-bpe"
    """clip-bpe, the 49,408-token byte-pair encoding of CLIP, is the only one."""
    clean: str = "lower"
    """lower, whitespace (keeps the case) or canonicalize (lower case without punctuation)."""

    def __post_init__(self) -> None:
        _require_choice("tokenizer.kind", self.kind, ("clip-bpe",))
        _require_choice("tokenizer.clean", self.clean, ("lower", "whitespace", "canonicalize"))


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that is needed to build a dual encoder and to feed it; travels with the weights."""

    name: str
    """Name of the architecture, OpenCLIP's where it has one."""
    embed_dim: int
    """Channels of the shared embedding."""
    quick_gelu: bool = False
    """x·sigmoid(1.702x) in place of GELU in both towers. No tensor tells which one the weights were trained with."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    """The image tower."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text tower."""
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    """Treatment of the pictures."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Treatment of the captions."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ClipModelsError("a model spec needs a name")
        if self.embed_dim <= 0:
            raise ClipModelsError(f"embed_dim {self.embed_dim} must be positive")
        side = self.vision.image_size
        if self.preprocess.size != (side, side):
            raise ClipModelsError(
                f"preprocess.size {list(self.preprocess.size)} is not the tower's input [{side}, {side}];"
                " change it together with vision.image_size"
            )
        if self.text.vocab_size < CLIP_BPE_VOCAB_SIZE:
            raise ClipModelsError(
                f"text.vocab_size {self.text.vocab_size} is less than the tokenizer's {CLIP_BPE_VOCAB_SIZE} ids"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is its inverse."""
        return _to_plain(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """A spec from plain types. Unknown keys, wrong types and impossible sizes raise ClipModelsError.

        Without `preprocess.size` the preprocessing takes the size of the image tower.
        """
        if "vision" in data and isinstance(data["vision"], Mapping):
            side = data["vision"].get("image_size", VisionConfig.image_size)
            data = {**data, "preprocess": {"size": [side, side], **data.get("preprocess", {})}}
        return _from_plain(cls, data, "model spec")

    def describe_difference(self, other: "ModelSpec") -> str:
        """The first thing that makes the two networks different, or "" where weights fit both (names may differ)."""
        for key in ("embed_dim", "quick_gelu", "vision", "text"):
            mine, theirs = getattr(self, key), getattr(other, key)
            if mine == theirs:
                continue
            if not dataclasses.is_dataclass(mine):
                return f"{key} {mine} against {theirs}"
            names = [f.name for f in dataclasses.fields(mine) if getattr(mine, f.name) != getattr(theirs, f.name)]
            return f"{key}.{names[0]} {getattr(mine, names[0])} against {getattr(theirs, names[0])}"
        return ""


def list_models() -> list[str]:
    """Names of the architectures that `get_model_spec` and `create_model` know, sorted."""
    return sorted(name for name, table in _tables().items() if not table.get("abstract"))


def get_model_spec(name: str) -> ModelSpec:
    """The spec of a named architecture; "ViT-B/32" is read as "ViT-B-32". ClipModelsError if there is none."""
    key = name.replace("/", "-")
    known = list_models()
    if key not in known:
        folded = {model.lower(): model for model in known}
        close = [folded[k] for k in get_close_matches(key.lower().replace("_", "-"), folded, n=3)]
        hint = f"did you mean {' or '.join(close)}?" if close else "list_models() names them all"
        raise ClipModelsError(f"unknown model {name!r}; {hint}")
    return ModelSpec.from_dict({"name": key, **_resolve(key)})


@functools.cache
def _tables() -> dict[str, dict[str, Any]]:
    return tomllib.loads((files("clip_models") / "data" / "models.toml").read_text(encoding="utf-8"))


def _resolve(name: str) -> dict[str, Any]:
    """The table of `name` laid over those it extends."""
    table = {key: value for key, value in _tables()[name].items() if key != "abstract"}
    parent = table.pop("extends", None)
    return _overlay(_resolve(parent), table) if parent else table


def _overlay(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _overlay(base[key], value) if isinstance(value, dict) and key in base else value
    return merged


def _require_positive(config: Any, where: str) -> None:
    for f in dataclasses.fields(config):
        if getattr(config, f.name) <= 0:
            raise ClipModelsError(f"{where}.{f.name} {getattr(config, f.name)} must be positive")


def _require_choice(where: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ClipModelsError(f"{where} {value!r} is unknown; choose from {', '.join(choices)}")


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [_to_plain(item) for item in value] if isinstance(value, tuple) else value


def _from_plain(kind: Any, value: Any, where: str) -> Any:
    """`value`, made of plain types, as `kind`: a dataclass, a tuple of fixed length, or a scalar."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ClipModelsError(f"{where} must be a table, not {value!r}")
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                close = get_close_matches(str(key), hints, n=1)
                hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(hints)}"
                raise ClipModelsError(f"unknown key {key!r} in {where}; {hint}")
        missing = [f.name for f in dataclasses.fields(kind) if _is_required(f) and f.name not in value]
        if missing:
            raise ClipModelsError(f"{where} lacks the key {missing[0]!r}")
        return typing.cast(Any, kind)(**{key: _from_plain(hints[key], item, key) for key, item in value.items()})
    if isinstance(kind, types.GenericAlias):
        parts = typing.get_args(kind)
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            raise ClipModelsError(f"{where} must be a list of {len(parts)}, not {value!r}")
        return tuple(_from_plain(part, item, where) for part, item in zip(parts, value, strict=True))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ClipModelsError(f"{where} must be of type {kind.__name__}, not {value!r}")
    return value


def _is_required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
