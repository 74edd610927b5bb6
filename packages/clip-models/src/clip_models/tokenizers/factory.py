"""The tokenizer of a model, and whether one fits it."""

import dataclasses
import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from clip_models.errors import ClipModelsError, registered
from clip_models.specs import (
    TOKENIZERS,
    CLIPTextConfig,
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

_OPENCLIP_NAMES = {"reduction_mask": "reduction", "tokenizer_mode": "mode"}


def get_tokenizer(
    model_name: str | ModelSpec,
    context_length: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **overrides: str | bool,
) -> Tokenizer:
    """Returns the tokenizer of an architecture: of its name, of a spec, or of a model source as in `create_model`.

    `context_length`: that of the text tower unless a smaller one is given. `overrides`: fields of TokenizerConfig, as
    in clean="canonicalize" or reduction="simple". `cache_dir`: the hub's cache. Raises ClipModelsError, also if the
    tokenizer does not fit the text tower (see `check_fit`).
    """
    spec = _resolve(model_name, cache_dir)
    fields = {field.name for field in dataclasses.fields(TokenizerConfig)}
    renamed = {_OPENCLIP_NAMES.get(key, key): value for key, value in overrides.items()}
    if unknown := sorted(renamed.keys() - fields):
        raise ClipModelsError(f"get_tokenizer has no option {unknown[0]!r}; choose from {', '.join(sorted(fields))}")
    spec = dataclasses.replace(spec, tokenizer=dataclasses.replace(spec.tokenizer, **renamed))  # type: ignore[arg-type]
    clean = cleaning_of(spec.tokenizer)
    length = spec.text.context_length if context_length is None else context_length
    tokenizer: Tokenizer = registered(TOKENIZERS, spec.tokenizer.kind).from_spec(spec, length, clean, cache_dir)
    check_fit(tokenizer, spec)
    return tokenizer


def check_fit(tokenizer: Tokenizer, spec: ModelSpec) -> None:
    """Raises ClipModelsError if the tokenizer's ids are not those that the spec's text tower was trained with.

    Such a pair runs without an error and gives poor features, for example because another token than the end is pooled.
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
    masks_padding = not isinstance(text, CLIPTextConfig) or text.embed_cls
    if masks_padding and text.pad_id is not None and tokenizer.pad_token_id != text.pad_id:
        raise ClipModelsError(
            f"the text tower of {name} masks the padding text.pad_id {text.pad_id}, the tokenizer pads with"
            f" {tokenizer.pad_token_id}; give text.pad_id, or tokenizer.kind and tokenizer.name, of the weights"
        )


def cleaning_of(config: TokenizerConfig) -> str:
    """Returns the cleaning mode of a config: its own, or the default of the kind of tokenizer."""
    return config.clean or str(registered(TOKENIZERS, config.kind).own_cleaning)


def tokenize(texts: Captions, context_length: int = 77) -> "torch.Tensor":
    """Returns CLIP's own ids: int64 tensor [N, context_length]."""
    return _clip()(texts, context_length)


def decode(output_ids: Iterable[int]) -> str:
    """Returns the text of CLIP's own ids, a one-dimensional tensor or any other sequence."""
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


def _described(config: TokenizerConfig) -> str:
    return f"{config.kind} {config.name}".strip()
