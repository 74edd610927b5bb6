"""Tokenizers of the Hugging Face libraries, with ids identical to OpenCLIP's HFTokenizer.

transformers reads the files; the ids come from the `tokenizers` object that it builds, so that reader processes, which
unpickle it, import neither transformers nor torch.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_models.errors import ClipModelsError, first_line
from clip_models.extras import require
from clip_models.specs import ModelSpec
from clip_models.tokenizers.base import Tokenizer, require_strings
from clip_models.tokenizers.cleaning import clean_caption
from clip_models.weights import hub

_FAST = "tokenizer.json"
_SLOW = ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
_CONFIGS = ("added_tokens.json", "special_tokens_map.json", "config.json", "tokenizer_config.json")
_LANGUAGE_INSIDE = "language_inside"  # key of a saved tokenizer that marks this language only


class HFTokenizer(Tokenizer):
    """A tokenizer by its id on the hub, its folder or its tokenizer.json.

    `strip_sep_token`: the separator that ends a caption becomes padding 0 (CLIPA). `language`: that of the captions,
    for tokenizers that mark it (NLLB). `mode` clips: start, caption, end, padding, and the class token last. Files in
    the hub's cache are used without a request. Raises ClipModelsError.
    """

    def __init__(
        self,
        name: str | os.PathLike[str],
        context_length: int = 77,
        clean: str = "whitespace",
        strip_sep_token: bool = False,
        language: str = "",
        mode: str = "",
        *,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(context_length, clean)
        self.name = os.fspath(name)
        self.strip_sep_token = strip_sep_token
        self.language = language
        self.mode = mode
        # Several reader processes tokenize at once; threads in each of them would compete.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        loaded = _load(self.name, cache_dir)
        if language:
            self._set_language(loaded, language)
        self.eot_token_id = loaded.eos_token_id if loaded.eos_token_id is not None else loaded.sep_token_id
        if loaded.pad_token_id is None:
            raise ClipModelsError(f"{self.name!r} has no padding token; set pad_token in its tokenizer_config.json")
        self.pad_token_id = loaded.pad_token_id
        self._sep: int | None = None
        if strip_sep_token:
            self._sep, self.eot_token_id = loaded.sep_token_id, None
            if self._sep is None:
                raise ClipModelsError(f"tokenizer.strip_sep_token needs a separator, which {self.name!r} does not have")
        self._clips = (loaded.bos_token_id, loaded.eos_token_id, loaded.cls_token_id)
        if mode == "clips" and None in self._clips:
            raise ClipModelsError(
                f"tokenizer.mode 'clips' needs tokens for start, end and class, which {self.name!r} does not have"
            )
        self._special_tokens = {
            key: str(token) for key, token in loaded.special_tokens_map.items() if isinstance(token, str)
        }
        self._backend = loaded.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        self._cut: int | None = None

        vocabulary = self._backend.get_vocab(with_added_tokens=False).values()
        self._vocab_size: int = max(*vocabulary, self.pad_token_id, *self._rows([""], None)[0]) + 1

    @classmethod
    def from_spec(cls, spec: ModelSpec, context_length: int, clean: str, cache_dir: Any = None) -> "HFTokenizer":
        config = spec.tokenizer
        options = (config.strip_sep_token, config.language, config.mode)
        return cls(config.name, context_length, clean, *options, cache_dir=cache_dir)

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def encode(self, text: str) -> list[int]:
        return self._ids(require_strings([text]), None, specials=False)[0]

    def save(self, folder: Path) -> list[str]:
        from transformers import PreTrainedTokenizerFast

        self._truncate(None)
        saved = PreTrainedTokenizerFast(
            tokenizer_object=self._backend,
            model_max_length=self.context_length,
            padding_side="right",
            **({_LANGUAGE_INSIDE: self.language} if self.language else {}),
            **self._special_tokens,
        ).save_pretrained(folder)
        return sorted(Path(path).name for path in saved if Path(path).exists())

    def _rows(self, texts: Sequence[str], length: int | None) -> list[list[int]]:
        texts = [clean_caption(text, self.clean) for text in texts]
        if self.mode == "clips":
            rows = self._ids(texts, None if length is None else length - 3, specials=False)
            bos, eos, cls = self._clips
            return [
                [bos, *ids, eos, *[self.pad_token_id] * (0 if length is None else length - 3 - len(ids)), cls]
                for ids in rows
            ]
        rows = self._ids(texts, length, specials=True)
        if self._sep is not None:
            return [[0 if i == self._sep else i for i in ids] for ids in rows]
        return rows

    def _last_id(self) -> int:
        return int(max(self._backend.get_vocab(with_added_tokens=True).values()))

    def _decode(self, ids: list[int]) -> str:
        return str(self._backend.decode(ids, skip_special_tokens=False))

    def _ids(self, texts: Sequence[str], length: int | None, *, specials: bool) -> list[list[int]]:
        self._truncate(length)
        try:
            found = self._backend.encode_batch_fast(list(texts), add_special_tokens=specials)
        except (UnicodeEncodeError, TypeError):  # the library's errors for lone surrogates
            plain = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
            found = self._backend.encode_batch_fast(plain, add_special_tokens=specials)
        return [encoding.ids for encoding in found]

    def _truncate(self, length: int | None) -> None:
        if length == self._cut:
            return
        if length is None:
            self._backend.no_truncation()
        else:
            self._backend.enable_truncation(length, direction="right")
        self._cut = length

    def _set_language(self, loaded: Any, language: str) -> None:
        if loaded.init_kwargs.get(_LANGUAGE_INSIDE) == language:
            return
        mark = getattr(loaded, "set_src_lang_special_tokens", None)
        if not callable(mark):
            raise ClipModelsError(f"tokenizer.language {language!r}: {self.name!r} marks no language; leave it out")
        if language not in loaded.all_special_tokens:
            raise ClipModelsError(f"tokenizer.language {language!r} is not one of {self.name!r}; as in eng_Latn")
        mark(language)


def _load(name: str, cache_dir: str | os.PathLike[str] | None) -> Any:
    """Returns the fast tokenizer of transformers."""
    transformers = require("transformers", "hf", f"the tokenizer {name!r}")
    path = Path(name)
    if path.is_file():
        if (path.parent / "tokenizer_config.json").is_file():
            path = path.parent
        else:
            return _from_file(transformers, path)
    on_hub = not path.is_dir()
    if on_hub and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise ClipModelsError(f"there is no tokenizer at {name!r}; give a folder, a tokenizer.json or org/name")
    source = name if on_hub else str(path)
    if on_hub:
        from huggingface_hub import try_to_load_from_cache

        folder = None if cache_dir is None else os.fspath(cache_dir)
        if not isinstance(try_to_load_from_cache(name, _CONFIGS[-1], cache_dir=folder), str):
            _fetch(name, cache_dir)
    # Without trust_remote_code=False the library asks on the terminal whether to run Python files of the repository.
    options = {"local_files_only": True, "cache_dir": cache_dir, "trust_remote_code": False}
    try:
        try:
            loaded = transformers.AutoTokenizer.from_pretrained(source, **options)
        except Exception:
            if not on_hub:
                raise
            _fetch(name, cache_dir)  # another program may have fetched a part of it
            loaded = transformers.AutoTokenizer.from_pretrained(source, **options)
    except ClipModelsError:
        raise
    except Exception as error:  # any exception of the library's parsers
        raise ClipModelsError(f"no tokenizer can be read from {name!r} ({first_line(error)})") from error
    if not loaded.is_fast:
        raise ClipModelsError(f"the tokenizer {name!r} has no fast form; convert it to a tokenizer.json first")
    return loaded


def _from_file(transformers: Any, path: Path) -> Any:
    """Returns the tokenizer of a tokenizer.json alone: its special tokens have their usual names."""
    usual = {
        "pad_token": ("<pad>", "[PAD]", "<|pad|>"),
        "bos_token": ("<s>", "<bos>", "[BOS]", "<|startoftext|>"),
        "eos_token": ("</s>", "<eos>", "[EOS]", "<|endoftext|>"),
        "sep_token": ("[SEP]",),
        "cls_token": ("[CLS]",),
    }
    try:
        loaded = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:  # the library raises a bare Exception
        raise ClipModelsError(f"{str(path)!r} is not a tokenizer.json ({first_line(error)})") from error
    known = loaded.get_vocab()
    for attribute, names in usual.items():
        if getattr(loaded, attribute) is None:
            setattr(loaded, attribute, next((token for token in names if token in known), None))
    return loaded


def _fetch(name: str, cache_dir: str | os.PathLike[str] | None) -> None:
    """Downloads a hub tokenizer into the hub's cache; its config last, as the mark of a complete one."""
    fast = hub.find_optional(name, _FAST, cache_dir=cache_dir)
    for file in (*(() if fast else _SLOW), *_CONFIGS):
        hub.find_optional(name, file, cache_dir=cache_dir)
