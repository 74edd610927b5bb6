"""The tokenizer beside an exported model, in the form that the `tokenizers` and transformers libraries read."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from clip_models.tokenizers import Tokenizer
from clip_models.tokenizers.clip_bpe import ClipTokenizer

_CLEANING: dict[str, list[dict[str, Any]]] = {
    "lower": [{"type": "Lowercase"}],
    "whitespace": [],
    "whitespace_underscore": [{"type": "Replace", "pattern": {"String": "_"}, "content": " "}],
    "canonicalize": [
        {"type": "Replace", "pattern": {"String": "_"}, "content": " "},
        {"type": "Replace", "pattern": {"Regex": r"[!-/:-@\[-`{-~]"}, "content": ""},
        {"type": "Lowercase"},
    ],
}


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> list[str]:
    """Writes the tokenizer's files; returns their names.

    clip-bpe becomes `tokenizer.json` with the ids of ClipTokenizer on clean text: the format has no step that repairs
    broken encodings and HTML entities. Others save themselves.
    """
    if not isinstance(tokenizer, ClipTokenizer):
        return tokenizer.save(folder)
    contents = _clip_bpe_files(tokenizer)
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return sorted(contents)


def _clip_bpe_files(tokenizer: ClipTokenizer) -> dict[str, Any]:
    # The names that transformers' CLIP tokenizer gives the two special tokens.
    start, end = "<|startoftext|>", "<|endoftext|>"
    names = {tokenizer.sot_token_id: start, tokenizer.eot_token_id: end}
    vocabulary, merges = tokenizer.vocabulary()
    tokens = {names.get(i, token): i for token, i in vocabulary.items()}
    padding = next(token for token, i in tokens.items() if i == 0)
    template = files("clip_models") / "data" / "clip_tokenizer.json"
    description = json.loads(template.read_text(encoding="utf-8"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    description["added_tokens"] = [{"id": i, "content": name, **flags} for i, name in names.items()]
    description["normalizer"]["normalizers"] += _CLEANING[tokenizer.clean]
    description["truncation"]["max_length"] = tokenizer.context_length
    description["padding"] |= {"strategy": {"Fixed": tokenizer.context_length}, "pad_token": padding}
    special = {name: {"id": name, "ids": [i], "tokens": [name]} for i, name in names.items()}
    description["post_processor"]["special_tokens"] = special
    description["model"] |= {"vocab": tokens, "merges": [list(pair) for pair in merges]}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.context_length,
        "bos_token": start,
        "eos_token": end,
        "unk_token": end,
        "pad_token": padding,
    }
    return {"tokenizer.json": description, "tokenizer_config.json": config}
