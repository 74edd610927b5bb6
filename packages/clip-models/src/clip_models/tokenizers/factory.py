"""The tokenizer of a model, and whether one fits it."""

import dataclasses
import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from clip_models.errors import ClipModelsError
from clip_models.specs import (
    CLIPTextConfig,
    HFTextConfig,
    ModelSpec,
    ModernTextConfig,
    TokenizerConfig,
    get_model_spec,
    list_models,
)
from clip_models.tokenizers.base import Captions, Tokenizer
from clip_models.tokenizers.clip_bpe import ClipTokenizer

if TYPE_CHECKING:
    import torch

_OWN_CLEANING = {"clip-bpe": "lower", "sentencepiece": "canonicalize", "hf": "whitespace", "tiktoken": "whitespace"}
_OPENCLIP_NAMES = {"reduction_mask": "reduction", "tokenizer_mode": "mode"}


def get_tokenizer(
    model_name: str | ModelSpec,
    context_length: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **overrides: str | bool,
) -> Tokenizer:
    """The tokenizer of an architecture (its name, a spec, or where a model lies as in `create_model`), checked to
    fit it.

    `context_length`: that of the text tower unless a smaller one is given. `overrides`: fields of TokenizerConfig, as
    in clean="canonicalize" or reduction="simple". `cache_dir`: the hub's cache. Errors: ClipModelsError.
    """
    spec = _resolve(model_name, cache_dir)
    fields = {field.name for field in dataclasses.fields(TokenizerConfig)}
    renamed = {_OPENCLIP_NAMES.get(key, key): value for key, value in overrides.items()}
    if unknown := sorted(renamed.keys() - fields):
        raise ClipModelsError(f"get_tokenizer has no option {unknown[0]!r}; choose from {', '.join(sorted(fields))}")
    spec = dataclasses.replace(spec, tokenizer=dataclasses.replace(spec.tokenizer, **renamed))  # type: ignore[arg-type]
    tokenizer = _build(spec, spec.text.context_length if context_length is None else context_length, cache_dir)
    check_fit(tokenizer, spec)
    return tokenizer


def check_fit(tokenizer: Tokenizer, spec: ModelSpec) -> None:
    """ClipModelsError where the tokenizer's ids are not those that the spec's text tower was made for.

    Such a pair runs without a complaint and gives poor features: an end token that is not the one pooled, captions
    that keep the punctuation which the tower never saw.
    """
    text, name = spec.text, spec.name
    if tokenizer.context_length > text.context_length:
        raise ClipModelsError(
            f"context_length {tokenizer.context_length} is more than the text.context_length {text.context_length} of"
            f" {name}; change it in the spec of the model, whose positions then grow with it"
        )
    if tokenizer.vocab_size > text.vocab_size:
        raise ClipModelsError(
            f"the tokenizer's ids go up to {tokenizer.vocab_size - 1}, the text tower of {name} has text.vocab_size"
            f" {text.vocab_size}; give tokenizer.kind and tokenizer.name of the weights ({_described(spec.tokenizer)})"
        )
    expected = cleaning_of(spec.tokenizer)
    if tokenizer.clean != expected:
        raise ClipModelsError(
            f"the tokenizer cleans captions by {tokenizer.clean!r}, {name} was made for {expected!r}: set"
            f" clean={expected!r}"
        )
    eos = tokenizer.eot_token_id
    if isinstance(text, CLIPTextConfig) and text.pool_type == "argmax" and not text.embed_cls:
        if eos != tokenizer.vocab_size - 1:
            raise ClipModelsError(
                f"{name} pools the token with the highest id (text.pool_type argmax), but the tokenizer's end token is"
                f" {eos} and its highest id {tokenizer.vocab_size - 1}; set text.pool_type = 'eos', text.eos_id = {eos}"
            )
    elif isinstance(text, CLIPTextConfig | ModernTextConfig) and text.pool_type == "eos" and eos != text.eos_id:
        raise ClipModelsError(
            f"{name} pools the token text.eos_id {text.eos_id}, the tokenizer ends captions with {eos}; give"
            f" text.eos_id, or tokenizer.kind and tokenizer.name, of the weights ({_described(spec.tokenizer)})"
        )
    pad = _masked_padding(text)
    if pad is not None and tokenizer.pad_token_id != pad:
        raise ClipModelsError(
            f"the text tower of {name} leaves out the padding text.pad_id {pad}, the tokenizer pads with"
            f" {tokenizer.pad_token_id}; give text.pad_id, or tokenizer.kind and tokenizer.name, of the weights"
        )


def cleaning_of(config: TokenizerConfig) -> str:
    """The cleaning mode of a config, which may leave it to the kind of tokenizer."""
    return config.clean or _OWN_CLEANING[config.kind]


def tokenize(texts: Captions, context_length: int = 77) -> "torch.Tensor":
    """CLIP's own ids: int64 tensor [N, context_length]."""
    return _clip()(texts, context_length)


def decode(output_ids: Iterable[int]) -> str:
    """Text of CLIP's own ids, a one-dimensional tensor or any other sequence."""
    return _clip().decode(output_ids)


@functools.cache
def _clip() -> ClipTokenizer:
    return ClipTokenizer()


def _resolve(model_name: str | ModelSpec, cache_dir: str | os.PathLike[str] | None) -> ModelSpec:
    if isinstance(model_name, ModelSpec):
        return model_name
    if model_name in list_models():
        return get_model_spec(model_name)
    from clip_models.weights.locate import is_model_source, locate, settle

    if not is_model_source(model_name):
        return get_model_spec(model_name)
    spec = settle(None, locate(model_name, cache_dir=cache_dir, load_weights=False))
    folder = Path(model_name.removeprefix("local-dir:"))
    if spec.tokenizer.kind == "hf" and (folder / "tokenizer_config.json").is_file():
        return dataclasses.replace(spec, tokenizer=dataclasses.replace(spec.tokenizer, name=str(folder)))
    return spec


def _build(spec: ModelSpec, context_length: int, cache_dir: str | os.PathLike[str] | None) -> Tokenizer:
    config, clean = spec.tokenizer, cleaning_of(spec.tokenizer)
    if config.kind == "hf":
        from clip_models.tokenizers.hf import HFTokenizer

        return HFTokenizer(
            config.name,
            context_length,
            clean,
            strip_sep_token=config.strip_sep_token,
            language=config.language,
            mode=config.mode,
            cache_dir=cache_dir,
        )
    if config.kind == "sentencepiece":
        from clip_models.tokenizers.sentencepiece import SigLipTokenizer

        return SigLipTokenizer(config.name, context_length, clean, cache_dir=cache_dir)
    if config.kind == "tiktoken":
        from clip_models.tokenizers.tiktoken import TikTokenTokenizer

        text = spec.text
        if isinstance(text, HFTextConfig) or text.eos_id is None:
            raise ClipModelsError(f"tokenizer.kind tiktoken takes its control ids from text.eos_id, which {spec.name!r}"
                                  " does not set")  # fmt: skip
        bos_id = text.bos_id if isinstance(text, ModernTextConfig) else None
        return TikTokenTokenizer(
            config.name, context_length, clean, eos_id=text.eos_id, pad_id=text.pad_id, bos_id=bos_id
        )
    return ClipTokenizer(context_length, clean, config.reduction)


def _masked_padding(text: CLIPTextConfig | ModernTextConfig | HFTextConfig) -> int | None:
    """The id that the tower takes for padding and does not attend to; None where it looks at all positions."""
    if isinstance(text, CLIPTextConfig) and not text.embed_cls:
        return None
    return text.pad_id


def _described(config: TokenizerConfig) -> str:
    return f"{config.kind} {config.name}".strip()
