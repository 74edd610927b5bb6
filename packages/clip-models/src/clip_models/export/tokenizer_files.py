"""The tokenizer beside an exported model, in the form that the `tokenizers` and transformers libraries read."""

import json
from pathlib import Path
from typing import Any

from clip_models.tokenizers import Tokenizer
from clip_models.tokenizers.clip_bpe import ClipTokenizer

# One quote, contraction, run of letters, digit or run of other signs: CLIP's pieces.
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# What ftfy does to text that is not broken: composed letters and straight quotes.
_MENDING = [
    {"type": "NFC"},
    {"type": "Replace", "pattern": {"Regex": "[\\u02bc\\u2018-\\u201b]"}, "content": "'"},
    {"type": "Replace", "pattern": {"Regex": "[\\u201c-\\u201f]"}, "content": '"'},
]


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> list[str]:
    """Writes the tokenizer's files; gives their names.

    clip-bpe becomes `tokenizer.json` with the ids of ClipTokenizer on clean text: mending of broken encodings and
    of HTML entities, which comes first there, has no place in that format. Others save themselves.
    """
    if isinstance(tokenizer, ClipTokenizer):
        files = _clip_bpe_files(tokenizer)
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return sorted(files)
    return tokenizer.save(folder)


def _clip_bpe_files(tokenizer: ClipTokenizer) -> dict[str, Any]:
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    vocabulary, merges = tokenizer.vocabulary()
    # The names that transformers' CLIP tokenizer gives the two special tokens.
    names = {start: "<|startoftext|>", end: "<|endoftext|>"}
    tokens = {names.get(i, token): i for token, i in vocabulary.items()}
    special = [
        {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i, name in names.items()
    ]  # fmt: skip
    padding_token = next(token for token, i in tokens.items() if i == 0)
    cleaning: dict[str, list[dict[str, Any]]] = {
        "lower": [{"type": "Lowercase"}],
        "whitespace": [],
        "whitespace_underscore": [{"type": "Replace", "pattern": {"String": "_"}, "content": " "}],
        "canonicalize": [
            {"type": "Replace", "pattern": {"String": "_"}, "content": " "},
            {"type": "Replace", "pattern": {"Regex": r"[!-/:-@\[-`{-~]"}, "content": ""},
            {"type": "Lowercase"},
        ],
    }
    description = {
        "version": "1.0",
        "truncation": {
            "direction": "Right", "max_length": tokenizer.context_length, "strategy": "LongestFirst", "stride": 0,
        },
        "padding": {
            "strategy": {"Fixed": tokenizer.context_length}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": padding_token,
        },
        "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [*_MENDING, *cleaning[tokenizer.clean]]},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _PIECES}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": names[start], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": names[end], "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for i, name in names.items()},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": tokens, "merges": [list(pair) for pair in merges],
        },
    }  # fmt: skip
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.context_length,
        "bos_token": names[start],
        "eos_token": names[end],
        "unk_token": names[end],
        "pad_token": padding_token,
    }
    return {"tokenizer.json": description, "tokenizer_config.json": settings}
